//! Hosts that fail: cut off, frozen, killed, without power, with a full disk, with a clock that jumps. Each is a network
//! namespace with a real vr-agent and a real vrun. Nothing may be lost, what was promised holds afterwards, and it is
//! said once.

mod agents;
mod remote;
mod server;
