//! Ports that no other test on the machine uses.

use std::path::PathBuf;

use vr_common::lock::FileLock;

/// The first port of all blocks: above the usual services, below the ports that the kernel hands out.
const FIRST: u16 = 20_000;
/// The ports of one block.
const SIZE: u16 = 100;
/// How many blocks there are.
const BLOCKS: u16 = 120;

/// A hundred ports, ours until the value is dropped or the process dies.
#[derive(Debug)]
pub struct PortBlock {
    first: u16,
    _lock: FileLock,
}

impl PortBlock {
    /// Takes a free block.
    ///
    /// # Panics
    /// When all blocks are taken.
    pub fn take() -> Self {
        let dir = std::env::temp_dir().join("velociraptor-test-ports");
        std::fs::create_dir_all(&dir).expect("a folder for port locks");
        // Begin at different places, so that tests that start together do not all try the same block.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        for i in 0..BLOCKS {
            let block = (start + i) % BLOCKS;
            let path: PathBuf = dir.join(block.to_string());
            if let Ok(lock) = FileLock::create(&path) {
                return Self { first: FIRST + block * SIZE, _lock: lock };
            }
        }
        panic!("all {BLOCKS} port blocks are taken");
    }

    /// The ports for procs.
    pub fn procs(&self) -> (u16, u16) {
        (self.first, self.first + 69)
    }

    /// The ports for pools.
    pub fn pools(&self) -> (u16, u16) {
        (self.first + 70, self.first + 99)
    }
}
