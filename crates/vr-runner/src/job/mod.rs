//! A job: work of minutes in a container, whose output people watch and whose traces must go away whatever happens.
//!
//! [`Interrupts`] turns signals into values, [`interruptible`] lets work that starts programs of its own be stopped
//! by them, [`Scratch`] is a folder that never outlives its owner for long, and [`run_live`] runs a container with
//! its output going to the terminal and to a log as it comes. Nothing here knows of buildpacks or of images.

mod live;
mod place;
mod scratch;
mod signals;
mod steps;

pub use live::{Ending, Log, run_live};
pub use place::{move_file, remove_file, write_whole};
pub use scratch::Scratch;
pub use signals::{Interruption, Interrupts, interruptible};
pub use steps::{Step, Steps, size};
