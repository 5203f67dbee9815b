//! vbuild as people run it: the real binary, real repositories, real containers. Needs root, git, Mercurial,
//! make, a C compiler and OpenSSH's server.
#![allow(clippy::unwrap_used, reason = "a test ends where its surroundings fail")]

mod buildpacks;
mod caches;
mod chain;
mod choice;
mod clean;
mod failures;
mod image;
mod isolation;
mod limits;
mod output;
mod repositories;
mod reproducible;
mod stopping;
mod support;
