//! What `vrun` says to people and to programs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::fs::File;
use std::io::Read;
use std::process::{Command, Output, Stdio};

use nix::pty::{Winsize, openpty};
use serde_json::{Value, json};
use support::{NAME, World, finish, text};
use vr_common::lock::FileLock;
use vr_common::process::command;

/// Runs `vrun <arguments> proc.yaml`.
fn vrun(world: &World, arguments: &[&str]) -> Output {
    let (verb, options) = arguments.split_first().unwrap();
    let mut command = world.command(verb);
    command.args(options);
    finish(command)
}

/// The last line of standard output, which is JSON, and the text before it.
fn last_line(output: &Output) -> (String, Value) {
    let said = text(&output.stdout);
    assert!(said.ends_with('\n'), "{said:?}");
    let (before, line) = match said.trim_end_matches('\n').rsplit_once('\n') {
        Some((before, line)) => (format!("{before}\n"), line.to_owned()),
        None => (String::new(), said.trim_end().to_owned()),
    };
    let mut value: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    assert!(value["seconds"].is_number(), "{line}");
    value.as_object_mut().unwrap().remove("seconds");
    (before, value)
}

/// The JSON of a command that prints nothing else.
fn only_line(output: &Output) -> Value {
    let (before, value) = last_line(output);
    assert_eq!(before, "");
    value
}

/// Runs a command with a terminal as its standard error; gives what came there, and its other output.
fn at_a_terminal(mut command: Command) -> (String, String) {
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    command.env("TERM", "xterm").env("NO_COLOR", "1");
    command.stdout(Stdio::piped()).stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    // Ours of the other end has to be closed, or there would be no end.
    drop(command);
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    let mut master = File::from(terminal.master);
    // A terminal that nobody has open any more ends with an error.
    while let Ok(length @ 1..) = master.read(&mut chunk) {
        said.extend_from_slice(&chunk[..length]);
    }
    assert!(child.wait().unwrap().success(), "{}", text(&said));
    (text(&said), stdout)
}

#[test]
fn pipes_are_told_only_what_they_ask_for() {
    let world = World::new("exit 0");
    world.pack();
    for arguments in [["setup"].as_slice(), &["teardown", "-q"]] {
        let silent = vrun(&world, arguments);
        assert!(silent.status.success());
        assert_eq!((text(&silent.stdout), text(&silent.stderr)), (String::new(), String::new()));
    }
    let said = vrun(&world, &["setup", "-v"]);
    assert_eq!(text(&said.stdout), "");
    let said = text(&said.stderr);
    // The tarball is still there.
    assert!(!said.contains("fetching"), "{said}");
    assert!(said.contains(&format!("{NAME} is set up in {}", world.proc_folder().display())), "{said}");
    assert!(!said.contains(['\r', '\u{1b}']), "{said:?}");
    let again = text(&vrun(&world, &["setup", "-v"]).stderr);
    assert!(again.contains(&format!("{NAME} was set up already")), "{again}");
    fs::remove_dir_all(world.root()).unwrap();
    let first = text(&vrun(&world, &["setup", "-v"]).stderr);
    let tarball = world.root().join("builds/build.tar.gz");
    for expected in [
        format!("fetching {}/build.tar.gz\n", world.path().display()),
        format!("unpacking {} (", tarball.display()),
    ] {
        assert!(first.contains(&expected), "{expected:?} is not in {first}");
    }
    let said = vrun(&world, &["setup", "-q", "-v"]);
    assert_eq!(said.status.code(), Some(2));
}

#[test]
fn at_a_terminal_bars_show_how_far_it_is() {
    let world = World::new("exit 0");
    world.app("blob", &"0123456789".repeat(100_000));
    world.app_program("uptests/web/10_first", "#!/bin/sh\nexit 1\n");
    world.pack();
    let (said, stdout) = at_a_terminal(world.command("setup"));
    assert_eq!(stdout, "");
    assert!(said.contains(&format!("fetching {}/build.tar.gz\r\n", world.path().display())), "{said:?}");
    assert!(said.contains(&format!("{NAME} is set up in ")), "{said:?}");
    // Once for the fetch, and once for the unpacking.
    for step in ["fetching", "unpacking"] {
        let after = said.split(step).nth(1).unwrap();
        assert!(after.contains("build.tar.gz [") && after.contains("kB"), "{step}: {said:?}");
    }
    assert!(!said.contains("INFO"), "{said:?}");

    fs::remove_dir_all(world.root()).unwrap();
    let mut quiet = world.command("setup");
    quiet.arg("--quiet");
    assert_eq!(at_a_terminal(quiet), (String::new(), String::new()));

    at_a_terminal(world.command("setup"));
    let (said, stdout) = at_a_terminal(world.command("uptest"));
    assert_eq!(stdout, "[{\"Name\":\"10_first\",\"Output\":\"\",\"Passed\":false}]\n");
    assert!(said.contains("running the uptest 10_first\r\n"), "{said:?}");
    assert!(said.contains("0 of 1 uptests passed"), "{said:?}");
    let (said, _) = at_a_terminal(world.command("teardown"));
    assert!(said.contains(&format!("{NAME} is gone from ")), "{said:?}");
}

#[test]
fn who_has_to_wait_says_for_what() {
    let world = World::new("exit 0");
    world.pack();
    let builds = world.root().join("builds");
    fs::create_dir_all(&builds).unwrap();
    let other = FileLock::create(&builds.join(".build.tar.gz.setup.lock")).unwrap();
    let mut setup = world.command("setup");
    setup.arg("-v");
    let mut setup = world.start_command(setup);
    setup.until_says("waiting for another setup with a tarball called build.tar.gz\n");
    drop(other);
    assert_eq!(setup.end(), 0, "{}", setup.output());
}

#[test]
fn json_says_what_setup_and_teardown_did() {
    let world = World::with_image("exit 0");
    world.pack();
    let folder = world.proc_folder();
    let sizes =
        ["build.tar.gz", "image.tar"].map(|name| fs::metadata(world.path().join(name)).unwrap().len());
    let mut first = only_line(&vrun(&world, &["setup", "--json"]));
    let layer = first["layer"].take();
    let layer = layer.as_str().unwrap();
    assert!(fs::metadata(layer).unwrap().is_dir(), "{layer}");
    let mut expected = json!({
        "command": "setup",
        "proc": NAME,
        "ok": true,
        "folder": folder,
        "image": world.root().join("images/tiny/contents"),
        "build": world.path().join("build.tar.gz"),
        "layer": null,
        "fetched_bytes": sizes.iter().sum::<u64>(),
        "changed": true,
    });
    assert_eq!(first, expected);
    let mut again = only_line(&vrun(&world, &["setup", "--json"]));
    assert_eq!(again["layer"].take(), layer);
    expected["fetched_bytes"] = json!(0);
    expected["changed"] = json!(false);
    assert_eq!(again, expected);
    // A text that was lost is put back, which is a change.
    fs::remove_file(folder.join("rootfs/proc.sh")).unwrap();
    assert_eq!(only_line(&vrun(&world, &["setup", "--json"]))["changed"], json!(true));

    for removed in [true, false] {
        assert_eq!(
            only_line(&vrun(&world, &["teardown", "--json"])),
            json!({ "command": "teardown", "proc": NAME, "ok": true, "folder": folder, "removed": removed })
        );
    }
}

#[test]
fn json_says_how_an_app_ended_on_a_line_of_its_own() {
    let world = World::new("printf 'no end'; exit 3").ready();
    let ended = vrun(&world, &["run", "--json"]);
    assert_eq!(ended.status.code(), Some(3));
    let (before, line) = last_line(&ended);
    assert_eq!(before, "no end\n");
    let mut expected = json!({
        "command": "run", "proc": NAME, "ok": false, "exit_code": 3, "signal": null, "out_of_memory": null
    });
    assert_eq!(line, expected);

    let world = World::new("echo output; kill -9 $$").ready();
    let killed = vrun(&world, &["run", "--json", "--log", world.path().join("log").to_str().unwrap()]);
    assert_eq!(killed.status.code(), Some(137));
    expected["exit_code"] = Value::Null;
    expected["signal"] = json!(9);
    // The app's output is in the log.
    assert_eq!(only_line(&killed), expected);
}

#[test]
fn json_puts_the_uptests_into_the_line() {
    let world = World::new("exit 0");
    world.app_program("uptests/web/1_good", "#!/bin/sh\necho \"at $1:$2\"\n");
    world.app_program("uptests/web/2_bad", "#!/bin/sh\nexit 1\n");
    let world = world.ready();
    let results = json!([
        { "Name": "1_good", "Output": "at localhost:5001\n", "Passed": true },
        { "Name": "2_bad", "Output": "", "Passed": false },
    ]);
    let bare = vrun(&world, &["uptest"]);
    assert_eq!(serde_json::from_slice::<Value>(&bare.stdout).unwrap(), results);
    let wrapped = vrun(&world, &["uptest", "--json"]);
    assert!(wrapped.status.success());
    assert_eq!(
        only_line(&wrapped),
        json!({ "command": "uptest", "proc": NAME, "ok": true, "passed": false, "results": results })
    );
}

#[test]
fn cleanup_says_what_went() {
    let world = World::new("exit 0").ready();
    let cleanup = |options: &[&str]| {
        let mut command = command(env!("CARGO_BIN_EXE_vrun"));
        command.env("VR_ROOT", world.root()).arg("cleanup").args(options);
        let output = finish(command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    };
    let nothing = json!({
        "command": "cleanup", "proc": null, "ok": true, "removed": [], "removed_bytes": 0, "errors": []
    });
    // It is in use.
    assert_eq!(only_line(&cleanup(&["--unused-for", "0s", "--json"])), nothing);
    let layer = only_line(&vrun(&world, &["setup", "--json"]))["layer"].take();
    let unpacked = layer.as_str().unwrap().strip_suffix("/layer").unwrap().to_owned();
    assert!(vrun(&world, &["teardown"]).status.success());
    // It was in use a moment ago.
    assert_eq!(text(&cleanup(&[]).stdout), "");
    let said = text(&cleanup(&["--unused-for", "0s"]).stdout);
    assert!(said.trim_start().starts_with(char::is_numeric), "{said}");
    assert!(said.ends_with(&format!("  unpacked build {unpacked}\n")), "{said}");

    assert!(vrun(&world, &["setup"]).status.success());
    assert!(vrun(&world, &["teardown"]).status.success());
    let line = only_line(&cleanup(&["--unused-for", "0s", "--json"]));
    let bytes = line["removed_bytes"].as_u64().unwrap();
    assert!(bytes > 0, "{line}");
    assert_eq!(line["removed"], json!([{ "kind": "unpacked_build", "path": unpacked, "bytes": bytes }]));
    assert_eq!(only_line(&cleanup(&["--unused-for", "0s", "--json"])), nothing);
}

#[test]
fn a_cleanup_that_could_not_do_everything_fails_and_says_why() {
    let world = World::new("exit 0").ready();
    fs::write(world.proc_folder().join("setup.json"), "nonsense").unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_vrun"));
    command.env("VR_ROOT", world.root()).args(["cleanup", "--unused-for", "0s", "--json"]);
    let output = finish(command);
    assert_eq!(output.status.code(), Some(1));
    let line = only_line(&output);
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("setup.json is not what setup writes"), "{error}");
    assert_eq!(line["errors"], json!([error]));
    assert_eq!((&line["ok"], &line["exit_code"]), (&json!(false), &json!(1)));
    assert!(text(&output.stderr).contains(&format!("ERROR: {error}\n")));
}

#[test]
fn failures_are_told_to_programs_too() {
    let world = World::new("exit 0");
    world.pack();
    let not_ready = vrun(&world, &["run", "--json"]);
    assert_eq!(not_ready.status.code(), Some(1));
    let error = format!("{NAME} is not set up");
    assert_eq!(
        only_line(&not_ready),
        json!({ "command": "run", "proc": NAME, "ok": false, "error": error, "exit_code": 1 })
    );
    assert!(text(&not_ready.stderr).contains(&format!("ERROR: {error}\n")));

    fs::write(world.file(), "volumes: 3\n").unwrap();
    let bad = vrun(&world, &["setup", "--json"]);
    assert_eq!(bad.status.code(), Some(2));
    let line = only_line(&bad);
    assert_eq!((&line["proc"], &line["ok"], &line["exit_code"]), (&Value::Null, &json!(false), &json!(2)));
    assert!(line["error"].as_str().unwrap().contains("proc.yaml"), "{line}");

    let usage = vrun(&world, &["cleanup", "--json"]);
    assert_eq!(usage.status.code(), Some(2));
    let line = only_line(&usage);
    assert_eq!((&line["command"], &line["exit_code"]), (&Value::Null, &json!(2)));
    assert!(line["error"].as_str().unwrap().starts_with("unexpected argument"), "{line}");
    // Who did not ask for it gets none.
    assert_eq!(text(&vrun(&world, &["cleanup"]).stdout), "");
}

#[test]
fn a_line_that_cannot_be_written_is_an_error() {
    let world = World::new("exit 0");
    world.pack();
    let mut setup = world.command("setup");
    setup.arg("--json").stdout(File::options().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    let output = setup.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write to standard output"), "{}", text(&output.stderr));
}

#[test]
fn every_help_screen_has_examples_that_fit() {
    for (program, name) in
        [(env!("CARGO_BIN_EXE_vrun"), "vrun"), (env!("CARGO_BIN_EXE_vrun_precise"), "vrun_precise")]
    {
        for verb in ["", "setup", "run", "uptest", "shell", "teardown", "cleanup"] {
            let mut help = command(program);
            help.args((!verb.is_empty()).then_some(verb)).arg("--help");
            let output = finish(help);
            assert!(output.status.success());
            let said = text(&output.stdout);
            let examples = said.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("{said}"));
            assert!(examples.contains(&format!("{name} {verb}")) && said.contains("Exit status"), "{said}");
            assert!(!said.contains('{') || said.contains("{\"Name\""), "{said}");
            let words = said.split_whitespace().filter(|word| *word == "vrun");
            assert!(name == "vrun" || words.count() <= 1, "{said}");
            for line in said.lines() {
                assert!(line.len() <= 110, "{line:?} is too long");
            }
        }
    }
}
