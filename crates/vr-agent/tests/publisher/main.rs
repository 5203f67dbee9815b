//! `proc_publisher` as a child: with a stand-in for Supervisor, which does on demand what the real one hardly ever
//! does, and in the real one. Redis is real.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod in_supervisor;
mod parts;
mod stand_in;
