//! Containers that LXC makes: `lxc-start`, of LXC 4 or later, with the text that [`config`] writes.
//!
//! LXC makes and mounts; the rest stays ours, so that both engines end, fail and pass signals on in the same way:
//!
//! - Process 1 is the same kind of small init, whose process numbers LXC shares. The program is not process 1, and when
//!   init dies, everything in the container does.
//! - `lxc-start` runs where nobody sees it ([`launcher`]): in mounts of its own, without control groups, which it
//!   otherwise makes many of and leaves some.
//! - It waits before the program until the program's process is in our control groups and we have a handle on it, for
//!   signals: LXC itself would make TERM of HUP.
//! - How the program ended is read from what LXC tells its monitors ([`messages`]); its exit code says nothing.

mod config;
mod groups;
mod init;
mod launcher;
mod messages;
mod prepare;
mod start;

pub use start::write_config;
pub(super) use start::{Supervisor, start};
