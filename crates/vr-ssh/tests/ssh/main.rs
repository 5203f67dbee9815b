//! The library against Debian's OpenSSH server, sudo and ssh-agent.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod commands;
mod failures;
mod files;
mod host_keys;
mod locks;
mod login;
mod sudo;

use std::future::Future;
use std::time::{Duration, Instant};

use vr_common::secret::Secret;
use vr_ssh::{SshHost, SshSettings};
use vr_testing::{DEADLINE, Sshd};

/// Settings for a server's user, with the key.
fn settings(sshd: &Sshd) -> SshSettings {
    SshSettings {
        user: Some(sshd.user().to_owned()),
        port: Some(sshd.port()),
        key_file: Some(sshd.key_file()),
        known_hosts: Some(sshd.known_hosts()),
        // Nobody's.
        agent_socket: Some(sshd.dir().join("no-agent")),
        ..SshSettings::default()
    }
}

/// The same with the password instead.
fn with_password(sshd: &Sshd) -> SshSettings {
    let key = sshd.dir().join("unknown-key");
    if !key.exists() {
        vr_testing::ended(
            vr_common::process::command("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(&key),
        )
        .expect(0);
    }
    let password = Some(Secret::new(sshd.password()));
    SshSettings { password, key_file: Some(key), ..settings(sshd) }
}

fn host(sshd: &Sshd, settings: SshSettings) -> SshHost {
    SshHost::new(sshd.address().to_string(), settings)
}

/// Waits for a condition without stopping the tasks.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
