//! Which hosts are believed.

use std::fs;

use vr_common::process::command;
use vr_ssh::{Command, HostKeyCheck, SshError, SshSettings};
use vr_testing::{Sshd, SshdOptions, ended};

use crate::{host, settings};

async fn enter(sshd: &Sshd, known_hosts: &str) -> Result<(), SshError> {
    fs::write(sshd.known_hosts(), known_hosts).unwrap();
    host(sshd, settings(sshd)).check(Command::new("true")).await.map(drop)
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_a_way_out() {
    let sshd = Sshd::start(SshdOptions::default());
    let error = enter(&sshd, "").await.unwrap_err();
    assert!(matches!(error, SshError::UnknownHostKey(_)) && !error.is_unreachable());
    let message = error.to_string();
    let key = sshd.dir().join("host_ed25519.pub");
    let shown = ended(command("ssh-keygen").arg("-lf").arg(key)).expect(0).stdout;
    let fingerprint = shown.split_whitespace().nth(1).unwrap();
    assert!(message.contains(&format!("ssh-ed25519 host key {fingerprint}")), "{message}");
    // The way out works.
    let (_, scan) = message.split_once("add it: ").unwrap();
    ended(command("sh").args(["-c", scan])).expect(0);
    let known = fs::read_to_string(sshd.known_hosts()).unwrap();
    assert!(known.starts_with(&format!("[127.0.0.1]:{} ssh-ed25519 ", sshd.port())), "{known}");
    enter(&sshd, &known).await.unwrap();
}

#[tokio::test]
async fn a_changed_key_is_refused_with_its_line() {
    let mut sshd = Sshd::start(SshdOptions::default());
    let known = format!("# a comment\n[127.0.0.1]:{} {}\n", sshd.port(), sshd.host_key("ed25519"));
    enter(&sshd, &known).await.unwrap();
    sshd.change_host_keys();
    let message = enter(&sshd, &known).await.unwrap_err().to_string();
    assert!(message.contains(&format!("than {}:2 has", sshd.known_hosts().display())), "{message}");
    assert!(message.starts_with(&format!("127.0.0.1 on port {} shows another", sshd.port())), "{message}");
    // Not with this policy either.
    let new = SshSettings { host_key_check: Some(HostKeyCheck::AcceptNew), ..settings(&sshd) };
    let error = host(&sshd, new).check(Command::new("true")).await.unwrap_err();
    assert!(matches!(error, SshError::ChangedHostKey { line: 2, .. }));
    assert_eq!(fs::read_to_string(sshd.known_hosts()).unwrap(), known);
    let off = SshSettings { host_key_check: Some(HostKeyCheck::Off), ..settings(&sshd) };
    host(&sshd, off).check(Command::new("true")).await.unwrap();
}

#[tokio::test]
async fn names_that_ssh_keygen_hashed() {
    let sshd = Sshd::start(SshdOptions::default());
    let line = format!("[127.0.0.1]:{} {}\n", sshd.port(), sshd.host_key("ed25519"));
    fs::write(sshd.known_hosts(), format!("web1 {}\n{line}", sshd.host_key("ed25519"))).unwrap();
    ended(command("ssh-keygen").args(["-q", "-H", "-f"]).arg(sshd.known_hosts())).expect(0);
    let hashed = fs::read_to_string(sshd.known_hosts()).unwrap();
    assert!(hashed.starts_with("|1|") && !hashed.contains("127.0.0.1"), "{hashed}");
    enter(&sshd, &hashed).await.unwrap();
    let other_names = hashed.lines().next().unwrap();
    assert!(matches!(enter(&sshd, other_names).await, Err(SshError::UnknownHostKey(_))));
}

#[tokio::test]
async fn the_host_is_asked_for_the_key_that_is_known() {
    let host_keys = vec!["ed25519", "rsa", "ecdsa"];
    let sshd = Sshd::start(SshdOptions { host_keys: host_keys.clone(), ..SshdOptions::default() });
    for kind in host_keys {
        enter(&sshd, &format!("[127.0.0.1]:{} {}\n", sshd.port(), sshd.host_key(kind))).await.unwrap();
    }
    let revoked = format!("* {rsa}\n@revoked * {rsa}\n", rsa = sshd.host_key("rsa"));
    assert!(matches!(enter(&sshd, &revoked).await, Err(SshError::RevokedHostKey { line: 2, .. })));
    let authority = format!("@cert-authority * {}\n", sshd.host_key("rsa"));
    let message = enter(&sshd, &authority).await.unwrap_err().to_string();
    assert!(message.contains("host certificates are not supported"), "{message}");
}

#[tokio::test]
async fn a_new_key_is_kept_when_that_is_wanted() {
    let mut sshd = Sshd::start(SshdOptions::default());
    let known_hosts = sshd.dir().join("new").join("known_hosts");
    let settings = SshSettings {
        host_key_check: Some(HostKeyCheck::AcceptNew),
        known_hosts: Some(known_hosts.clone()),
        ..settings(&sshd)
    };
    for _ in 0..2 {
        host(&sshd, settings.clone()).check(Command::new("true")).await.unwrap();
    }
    let known = fs::read_to_string(&known_hosts).unwrap();
    assert_eq!((known.lines().count(), known.contains("127.0.0.1")), (1, true), "{known}");
    // OpenSSH reads it.
    let name = format!("[127.0.0.1]:{}", sshd.port());
    ended(command("ssh-keygen").args(["-F", &name, "-f"]).arg(&known_hosts)).expect(0);
    sshd.change_host_keys();
    let error = host(&sshd, settings).check(Command::new("true")).await.unwrap_err();
    assert!(matches!(error, SshError::ChangedHostKey { .. }));
}
