//! What the tests of programs share: a program that ended or still runs, conditions that are waited for, and something
//! on the other end of a connection. Whatever goes wrong fails the test, by a panic with all that is known.
//!
//! Only for tests: no program depends on this crate.

mod meeting;
mod program;
mod python;
mod server;
mod sshd;
mod wait;

pub use meeting::Meeting;
pub use program::{Ended, Started, ended};
pub use python::published_python;
pub use server::{Answer, Server};
pub use sshd::{Sshd, SshdOptions, SudoRule};
pub use wait::{DEADLINE, marker, names, sleeps, until};
