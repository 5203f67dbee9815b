//! vbuild as people run it: the real binary, real repositories, real containers. Needs root, git and Mercurial.
#![allow(clippy::unwrap_used, reason = "a test ends where its surroundings fail")]

mod caches;
mod choice;
mod failures;
mod image;
mod isolation;
mod output;
mod stopping;
mod support;
