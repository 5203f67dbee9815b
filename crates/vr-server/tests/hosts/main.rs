//! Hosts as the server uses them: one suite over both drivers, on real programs: vr-agent and vrun; Debian's supervisord, sshd
//! and redis-server. Needs root, as vrun and sshd do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agent;
mod fleet;
mod redis;
mod rig;
mod suite;
mod supervisor;
