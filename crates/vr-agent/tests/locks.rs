//! Locks that are tried while programs are started. Alone in its process, as every other start would be in the way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::thread;

use vr_agent::vrun::{is_free, start};
use vr_common::process::command;

#[test]
fn a_lock_that_is_being_tried_is_seen_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proc.yaml");
    fs::write(&file, "cmd: x").unwrap();
    let tried = thread::scope(|scope| {
        let starter = || {
            for _ in 0..300 {
                start(|| command("true").spawn()).unwrap().wait().unwrap();
            }
        };
        let starters = [scope.spawn(starter), scope.spawn(starter)];
        let mut tried = 0;
        while starters.iter().any(|starter| !starter.is_finished()) {
            assert!(is_free(&file).unwrap(), "taken after {tried} tries");
            tried += 1;
        }
        tried
    });
    assert!(tried > 100, "{tried}");
}
