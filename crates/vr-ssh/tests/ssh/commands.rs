//! What commands read and write, and how they end.

use std::time::{Duration, Instant};

use vr_ssh::{Chunk, Command, SshError, Status};
use vr_testing::{Sshd, SshdOptions, marker, sleeps};

use crate::{host, settings, until};

fn shell(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

/// Bytes that are not all the same.
fn much(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 % 251) as u8).collect()
}

#[tokio::test]
async fn output_codes_and_signals() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let output = host.run(shell("echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!(
        (output.text().as_str(), output.stderr.as_str(), output.status.code()),
        ("out\n", "err\n", Some(7))
    );
    let message = output.expect_success().unwrap_err().to_string();
    assert_eq!(message, "sh on 127.0.0.1 failed with exit code 7: err");
    let killed = host.run(shell("kill -KILL $$")).await.unwrap();
    assert_eq!(killed.status, Status::Signal("KILL".to_owned()));
    let absent =
        host.check(Command::new("no-such-program").named("the first step")).await.unwrap_err().to_string();
    assert!(absent.starts_with("the first step on 127.0.0.1 failed with exit code 127: "), "{absent}");
    // Whatever the settings of this process's environment are: a command without input reads nothing.
    assert_eq!(host.check(Command::new("cat")).await.unwrap().stdout, b"");
    assert_eq!(sshd.logins(), 1);
}

#[tokio::test]
async fn words_arrive_as_they_are() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let odd = "it's \"a\" $HOME `id` \\ \n * ~ !x; | & # \u{fc}";
    let output = host.check(Command::new("printf").args(["<%s>", odd, "", "--"])).await.unwrap();
    assert_eq!(output.text(), format!("<{odd}><><-->"));
    let command = shell("printf '%s in %s' \"$ODD\" \"$PWD\"").env("ODD", odd).dir("/usr/lib");
    assert_eq!(host.check(command).await.unwrap().text(), format!("{odd} in /usr/lib"));
    let message = host.run(Command::new("pwd").dir("/no/where")).await.unwrap();
    assert_eq!(message.status.code(), Some(126));
    assert!(matches!(host.run(Command::new("a\0b")).await, Err(SshError::Invalid { .. })));
}

#[tokio::test]
async fn ten_megabytes_each_way_at_once() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let all = much(10 << 20);
    let command = Command::new("cat").input(all.clone()).output_limit(all.len());
    let output = host.check(command).await.unwrap();
    assert!(output.stdout == all && !output.is_truncated);
    // With the end of a stream as the end.
    let command =
        Command::new("cat").input_until_end(std::io::Cursor::new(all.clone())).output_limit(all.len());
    assert!(host.check(command).await.unwrap().stdout == all);
    // Both outputs, and a reader who does not want all of it.
    let command = shell("cat; head -c 10000000 /dev/zero >&2; echo end >&2");
    let length = all.len() as u64;
    let output = host.check(command.input_of(length, std::io::Cursor::new(all.clone()))).await.unwrap();
    assert!(output.is_truncated && output.stdout == all[..vr_ssh::OUTPUT_LIMIT]);
    assert!(output.stderr.ends_with("\0end\n") && output.stderr.len() < 1 << 20);
    // A command that does not read its input.
    host.check(Command::new("true").input(all)).await.unwrap();
}

#[tokio::test]
async fn an_input_that_is_too_short_ends_the_command() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let marker = marker();
    let command = shell(&format!("head -c 3; sleep {marker}")).input_of(10, &b"abc"[..]);
    let message = host.run(command).await.unwrap_err().to_string();
    assert_eq!(message, "the input of sh on 127.0.0.1 cannot be read: it ended after 3 of 10 bytes");
    until("the command is ended", async || !sleeps(&marker)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_share_a_connection() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let commands = (0..50).map(|number| {
        let host = host.clone();
        tokio::spawn(async move {
            let script = format!("sleep 0.1; head -c 100000 /dev/zero; echo {number}");
            let output = host.check(shell(&script)).await.unwrap();
            assert_eq!(output.stdout.len(), 100_000 + number.to_string().len() + 1);
            assert!(output.text().ends_with(&format!("\0{number}\n")));
        })
    });
    for command in commands.collect::<Vec<_>>() {
        command.await.unwrap();
    }
    assert_eq!(sshd.logins(), 1);
}

#[tokio::test]
async fn a_host_with_few_sessions_gets_them_one_after_the_other() {
    let config = "MaxSessions 2".to_owned();
    let sshd = Sshd::start(SshdOptions { config, ..SshdOptions::default() });
    let host = host(&sshd, settings(&sshd));
    let commands = (0..6).map(|_| {
        let host = host.clone();
        tokio::spawn(async move { host.check(shell("sleep 0.2")).await.map(drop) })
    });
    for command in commands.collect::<Vec<_>>() {
        command.await.unwrap().unwrap();
    }
    assert_eq!(sshd.logins(), 1);
}

#[tokio::test]
async fn a_command_that_leaves_something_behind_is_not_waited_for() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let marker = marker();
    let begun = Instant::now();
    let output = host.check(shell(&format!("setsid sleep {marker} & echo done"))).await.unwrap();
    assert_eq!(output.text(), "done\n");
    assert!(begun.elapsed() < Duration::from_secs(30));
    // What it left behind on purpose goes on.
    assert!(sleeps(&marker));
}

#[tokio::test]
async fn output_is_read_as_it_comes() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let mut running =
        host.stream(shell("echo one; echo two >&2; read go; printf three; exit 3")).await.unwrap();
    let mut lines = vec![running.line().await.unwrap().unwrap(), running.line().await.unwrap().unwrap()];
    lines.sort();
    assert_eq!(lines, ["one", "two"]);
    assert_eq!(running.line().await.unwrap().as_deref(), Some("three"));
    assert_eq!(running.line().await.unwrap(), None);
    let output = running.end().await.unwrap();
    assert_eq!((output.status, output.stderr.as_str()), (Status::Code(3), "two\n"));

    let mut running = host.stream(Command::new("cat").input("a\0b")).await.unwrap();
    assert_eq!(running.chunk().await.unwrap(), Some(Chunk::Stdout("a\0b".into())));
    assert_eq!(running.chunk().await.unwrap(), None);
    assert_eq!(running.status().await.unwrap(), Status::Code(0));
}

#[tokio::test]
async fn a_slow_reader_holds_up_only_itself() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let mut running = host.stream(shell("yes | head -c 30000000; echo end >&2")).await.unwrap();
    assert!(running.chunk().await.unwrap().is_some());
    let begun = Instant::now();
    for _ in 0..5 {
        host.check(Command::new("true")).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    let mut length = 0;
    while let Some(chunk) = running.chunk().await.unwrap() {
        if let Chunk::Stdout(bytes) = chunk {
            length += bytes.len();
        }
    }
    // The first piece was read before.
    assert!((29_000_000..30_000_000).contains(&length), "{length}");
}

#[tokio::test]
async fn a_command_whose_reader_goes_away_is_ended() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let marker = marker();
    let script = format!("trap '' HUP; echo begun; sleep {marker} | cat; echo late");
    for command in [shell(&script), shell(&script).input("x")] {
        let mut running = host.stream(command).await.unwrap();
        assert_eq!(running.line().await.unwrap().as_deref(), Some("begun"));
        vr_testing::until("it sleeps", || sleeps(&marker));
        drop(running);
        until("the command is ended", async || !sleeps(&marker)).await;
    }
    // The same for a call that is given up.
    let run = tokio::spawn({
        let (host, script) = (host.clone(), script.clone());
        async move { host.run(shell(&script)).await }
    });
    until("it sleeps", async || sleeps(&marker)).await;
    run.abort();
    until("the command is ended", async || !sleeps(&marker)).await;
}

#[tokio::test]
async fn a_stubborn_command_is_killed() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let marker = marker();
    let command = shell(&format!("trap '' TERM HUP INT; sleep {marker}"));
    let error = host.run(command.timeout(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(error.to_string(), "sh on 127.0.0.1 was not done within 1s");
    until("the command is killed", async || !sleeps(&marker)).await;
    // The connection is as good as before.
    host.check(Command::new("true")).await.unwrap();
    assert_eq!(sshd.logins(), 1);
}
