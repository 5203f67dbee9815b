//! vimage as people run it: the real binary, a real base image, real containers. Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends where its surroundings fail")]

mod building;
mod changes;
mod failures;
mod limits;
mod output;
mod scripts;
mod support;
mod together;
