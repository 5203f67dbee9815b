//! Locks on the host.

use std::time::{Duration, Instant};

use vr_common::process::command;
use vr_common::secret::Secret;
use vr_ssh::{As, SshError, SshHost, SshSettings};
use vr_testing::{Sshd, SshdOptions, Started, SudoRule};

use crate::{host, settings, until};

const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn one_at_a_time() {
    let sshd = Sshd::start(SshdOptions::default());
    let (one, two) = (host(&sshd, settings(&sshd)), host(&sshd, settings(&sshd)));
    let path = sshd.home().join("the host's lock");
    let held = one.lock(&path, "deploy of\nweb", NOW, As::User).await.unwrap();
    assert!(held.is_held());
    let error = two.lock(&path, "", NOW, As::User).await.unwrap_err();
    let expected = format!("{} on 127.0.0.1 is locked by deploy of web", path.display());
    assert!(matches!(error, SshError::Locked { .. }));
    assert_eq!(error.to_string(), expected);
    let waiting = tokio::spawn({
        let path = path.clone();
        async move { two.lock(&path, "", Duration::from_secs(50), As::User).await }
    });
    held.release().await;
    let second = waiting.await.unwrap().unwrap();
    // Dropped, it goes as well.
    drop(second);
    one.lock(&path, "", Duration::from_secs(20), As::User).await.unwrap();
    let error = one.lock("/no/where".as_ref(), "", NOW, As::User).await.unwrap_err().to_string();
    assert!(error.contains("locking /no/where on 127.0.0.1 failed"), "{error}");
}

#[tokio::test]
async fn roots_lock() {
    let sshd = Sshd::start(SshdOptions { sudo: SudoRule::WithPassword, ..SshdOptions::default() });
    let sudo_password = Some(Secret::new(sshd.password()));
    let host = host(&sshd, SshSettings { sudo: Some(true), sudo_password, ..settings(&sshd) });
    let path = sshd.dir().join("lock");
    let held = host.lock(&path, "deploy", NOW, As::Root).await.unwrap();
    assert!(matches!(host.lock(&path, "", NOW, As::Root).await, Err(SshError::Locked { .. })));
    held.release().await;
    host.lock(&path, "", NOW, As::Root).await.unwrap();
}

#[tokio::test]
async fn a_lock_is_lost_with_its_connection() {
    let mut sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let held = host.lock(&sshd.home().join("lock"), "", NOW, As::User).await.unwrap();
    sshd.kill();
    tokio::time::timeout(Duration::from_secs(20), held.lost()).await.unwrap();
    assert!(!held.is_held());
}

#[tokio::test]
async fn a_lock_is_lost_when_the_host_says_nothing_any_more() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let held = host.lock(&sshd.home().join("lock"), "", NOW, As::User).await.unwrap();
    sshd.freeze();
    let begun = Instant::now();
    tokio::time::timeout(Duration::from_secs(50), held.lost()).await.unwrap();
    // Before the host gives it up.
    assert!(!held.is_held() && begun.elapsed() < Duration::from_secs(55));
    sshd.thaw();
}

/// What the next test kills: holds a lock until then.
#[tokio::test]
async fn holder() {
    let Ok(text) = std::env::var("VR_SSH_TEST_HOLD") else { return };
    let [port, dir]: [&str; 2] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let dir = std::path::Path::new(dir);
    let settings = SshSettings {
        user: Some("operator".to_owned()),
        port: Some(port.parse().unwrap()),
        key_file: Some(dir.join("key")),
        known_hosts: Some(dir.join("known_hosts")),
        ..SshSettings::default()
    };
    let _held = SshHost::new("127.0.0.1", settings)
        .lock(&dir.join("home/lock"), "holder", NOW, As::User)
        .await
        .unwrap();
    println!("it is held");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_lock_goes_with_its_holder() {
    let sshd = Sshd::start(SshdOptions::default());
    let mut holder = command(std::env::current_exe().unwrap());
    holder.args(["--exact", "locks::holder", "--nocapture"]);
    holder.env("VR_SSH_TEST_HOLD", format!("{} {}", sshd.port(), sshd.dir().display()));
    let mut holder = Started::new(&mut holder);
    holder.until_output("it is held");
    let (host, path) = (host(&sshd, settings(&sshd)), sshd.home().join("lock"));
    let error = host.lock(&path, "", NOW, As::User).await.unwrap_err();
    assert!(error.to_string().ends_with("is locked by holder"), "{error}");
    // SIGKILL.
    holder.0.kill().unwrap();
    until("the lock is free", async || host.lock(&path, "", NOW, As::User).await.is_ok()).await;
}
