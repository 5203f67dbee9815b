//! Commands that become root's.

use std::time::{Duration, Instant};

use vr_common::secret::Secret;
use vr_ssh::{Command, SshError, SshHost, SshSettings, Status};
use vr_testing::{Sshd, SshdOptions, SudoRule, marker, sleeps};

use crate::{host, settings, until, with_password};

fn start(sudo: SudoRule) -> Sshd {
    Sshd::start(SshdOptions { sudo, ..SshdOptions::default() })
}

fn with_sudo(sshd: &Sshd, password: Option<&str>) -> SshHost {
    let sudo_password = password.map(Secret::new);
    host(sshd, SshSettings { sudo: Some(true), sudo_password, ..settings(sshd) })
}

fn whoami() -> Command {
    Command::new("id").arg("-u").as_root()
}

async fn works(host: &SshHost) {
    assert_eq!(host.check(whoami()).await.unwrap().text(), "0\n");
    assert_eq!(host.check(Command::new("id").arg("-un")).await.unwrap().text(), "operator\n");
    // Not one byte of the password gets into the input, nor one of the input into sudo.
    let input: Vec<u8> = (0..3_000_000).map(|at| (at % 256) as u8).collect();
    let cat = Command::new("cat").as_root().input(input.clone()).output_limit(input.len());
    let output = host.check(cat).await.unwrap();
    assert!(output.stdout == input);
    assert_eq!(output.stderr, "");
    let odd = "it's \"$HOME\"\n";
    let script = "printf %s \"$1$ODD$PWD\"; echo err >&2; exit 9";
    let command = Command::new("sh").args(["-c", script, "sh", odd]).env("ODD", odd).dir("/usr").as_root();
    let output = host.run(command).await.unwrap();
    assert_eq!((output.text(), output.status), (format!("{odd}{odd}/usr"), Status::Code(9)));
    assert_eq!(output.stderr, "err\n");
    let killed = host.run(Command::new("sh").args(["-c", "kill -TERM $$"]).as_root()).await.unwrap();
    assert!(!killed.status.success());
    // What is root's is ended as well.
    let marker = marker();
    let sleep = Command::new("sh").args(["-c", &format!("echo begun; sleep {marker}; true")]).as_root();
    let mut running = host.stream(sleep).await.unwrap();
    assert_eq!(running.line().await.unwrap().as_deref(), Some("begun"));
    drop(running);
    until("the command is ended", async || !sleeps(&marker)).await;
}

#[tokio::test]
async fn without_a_password() {
    let sshd = start(SudoRule::WithoutPassword);
    works(&with_sudo(&sshd, None)).await;
}

#[tokio::test]
async fn with_a_password() {
    let sshd = start(SudoRule::WithPassword);
    works(&with_sudo(&sshd, Some(sshd.password()))).await;
}

#[tokio::test]
async fn a_password_that_nobody_asks_for_goes_nowhere() {
    let sshd = start(SudoRule::WithoutPassword);
    works(&with_sudo(&sshd, Some("something else"))).await;
}

#[tokio::test]
async fn the_password_of_the_login_is_that_of_sudo() {
    let sshd = start(SudoRule::WithPassword);
    let settings = SshSettings { sudo: Some(true), ..with_password(&sshd) };
    assert_eq!(host(&sshd, settings).check(whoami()).await.unwrap().text(), "0\n");
}

#[tokio::test]
async fn older_settings_of_sudo() {
    // Without a terminal of its own, and with the password remembered.
    let sudoers = "Defaults !use_pty,lecture=always,timestamp_timeout=5,timestamp_type=global\n".to_owned();
    let options = SshdOptions { sudo: SudoRule::WithPassword, sudoers, ..SshdOptions::default() };
    let sshd = Sshd::start(options);
    works(&with_sudo(&sshd, Some(sshd.password()))).await;
}

#[tokio::test]
async fn a_wrong_password_is_found_out() {
    let sshd = start(SudoRule::WithPassword);
    let begun = Instant::now();
    let error = with_sudo(&sshd, Some("hunter2")).run(whoami().input("input\n")).await.unwrap_err();
    assert!(matches!(error, SshError::Sudo { .. }) && !error.is_unreachable());
    let message = error.to_string();
    assert_eq!(message, "sudo on 127.0.0.1 does not let operator become root: the password is wrong");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn what_sudo_refuses_is_told() {
    let sshd = start(SudoRule::WithPassword);
    let message = with_sudo(&sshd, None).run(whoami()).await.unwrap_err().to_string();
    assert!(message.contains("become root: sudo: a password is required"), "{message}");

    let sshd = start(SudoRule::Refused);
    let message = with_sudo(&sshd, Some(sshd.password())).run(whoami()).await.unwrap_err().to_string();
    assert!(message.contains("operator is not in the sudoers file"), "{message}");
    assert!(!message.contains("vr-"), "{message}");
}

#[tokio::test]
async fn root_needs_no_sudo() {
    let sshd = start(SudoRule::Refused);
    let root = SshSettings { user: Some("root".to_owned()), sudo: Some(true), ..settings(&sshd) };
    assert_eq!(host(&sshd, root).check(whoami()).await.unwrap().text(), "0\n");
    // Nor does anybody whose settings say no.
    let uid = host(&sshd, settings(&sshd)).check(whoami()).await.unwrap().text();
    assert_eq!(uid, format!("{}\n", sshd.uid()));
}
