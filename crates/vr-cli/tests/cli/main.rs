//! The program as its users meet it, against a server with canned answers.
#![expect(clippy::unwrap_used, reason = "what a test's own server and helpers cannot do fails the test")]

mod commands;
mod patience;
mod support;
