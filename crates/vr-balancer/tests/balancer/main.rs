//! The balancers as their users meet them: real sockets on 127.0.0.1 and the real `vr-balancer` program.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cli;
mod failures;
mod messages;
mod restart;
mod suite;
mod support;
mod traffic;
