//! Builds that fail: the exit code, the one line that says why, and nothing half-made.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::{World, ended};

#[test]
fn a_compile_that_fails_keeps_its_log() {
    let world = World::new();
    let yaml = world.yaml_with("echo to stdout; echo to stderr >&2; echo half > $1/made; exit 23");
    fs::create_dir_all(world.path("out")).unwrap();
    for name in ["build.tar.gz", "build_result.yaml"] {
        fs::write(world.out(name), "of an earlier build").unwrap();
    }
    let ended = world.build(&yaml).expect(4);
    assert_eq!(ended.error(), "compile failed: bin/compile of pack ended with exit code 23");
    let log = world.out("compile.log").canonicalize().unwrap();
    let details = format!(
        "  in the step compile\n  its output is in {}, which ends with:\n  | -----> Toy app detected\n  | to stdout\n  \
         | to stderr\nhint: vbuild shell opens a shell where this can be looked into; --no-cache builds with an empty cache\n",
        log.display()
    );
    assert!(ended.stderr.ends_with(&details), "{}", ended.stderr);
    assert_eq!(world.log(), "-----> Toy app detected\nto stdout\nto stderr\n");
    assert_eq!(ended.stdout, world.log());
    world.assert_no_build();
}

#[test]
fn the_end_of_a_log_is_kept_however_long_it_is() {
    let world = World::new();
    let yaml = world.yaml_with("yes 'and so on and on' | head -n 4000000; echo the real cause; exit 1");
    let ended = ended(&mut world.vbuild(&["build", "-q"], &yaml)).expect(4);
    assert!(ended.stderr.contains("\n  | and so on and on\n  | the real cause\n"), "{}", ended.stderr);
    let log = world.log();
    assert!(log.len() < 68 << 20 && log.ends_with("\nthe real cause\n"), "{}", log.len());
    assert!(log.contains("\n[of what came after 64 MiB, only the end is kept]\n"));
    world.assert_no_build();
}

#[test]
fn a_result_that_a_failed_build_was_made_after_stays() {
    let world = World::new();
    world.build(&world.yaml_with("true")).expect(0);
    let text = fs::read_to_string(world.out("build_result.yaml")).unwrap();
    let result = text.replace("version: v1", "version: v9");
    assert_ne!(result, text);
    fs::write(world.out("build_result.yaml"), &result).unwrap();
    // In its folder, by a name that is not the whole path.
    world.build(Path::new("build_result.yaml")).expect(2);
    assert_eq!(fs::read_to_string(world.out("build_result.yaml")).unwrap(), result);
    assert!(!world.out("build.tar.gz").exists());
    fs::copy(world.out("build_result.yaml"), world.path("copy.yaml")).unwrap();
    world.build(&world.path("copy.yaml")).expect(2);
    world.assert_no_build();
}

#[test]
fn a_compile_that_is_killed_or_missing_is_said_to_be() {
    let world = World::new();
    let ended = world.build(&world.yaml_with("kill -9 $$")).expect(4);
    assert_eq!(ended.error(), "compile failed: bin/compile of pack ended with signal 9 (SIGKILL)");
    world.assert_no_build();

    let world = World::new();
    let pack = world.git("pack", &[("README", "x")]);
    let ended =
        world.build(&world.yaml(&world.app(), &format!("buildpack_url: {}", pack.display()))).expect(4);
    assert_eq!(
        ended.error(),
        "compile failed: bin/compile of pack ended with exit code 127 (it, or a program that it calls, does not exist)"
    );
    world.assert_no_build();
}

#[test]
fn a_release_that_fails_or_makes_no_sense_fails_the_build() {
    for (release, expected) in [
        ("exit 9", "release failed: bin/release of pack ended with exit code 9"),
        (
            "echo '- a list'",
            "release failed: bin/release of pack gave no release data: its output: expected a mapping (key: value), found a list",
        ),
        ("echo 'a: ['", "release failed: bin/release of pack gave no release data: its output: "),
        ("rm -f /out/release.1; ln -s /etc/passwd /out/release.1", "cannot read "),
        ("head -c 3000000 /dev/zero", "cannot read "),
    ] {
        let world = World::new();
        let yaml = world.yaml_with("true");
        let release = format!("#!/bin/sh\n{release}\n");
        world.write("pack", &[("bin/release", &release)]);
        crate::support::commit(&world.path("pack"), "v2");
        let ended = world.build(&yaml);
        assert_eq!(ended.code, Some(if expected.starts_with("cannot") { 1 } else { 4 }), "{release}");
        assert!(ended.error().starts_with(expected), "{release}: {}", ended.error());
        world.assert_no_build();
    }
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    let world = World::new();
    let (app, pack) = (world.app(), world.pack("pack", "true"));
    let pack = format!("buildpack_url: {}", pack.display());
    let app_shown = app.display();
    for (more, expected) in [
        (format!("{pack}\nversion: v9"), format!("{app_shown} has no revision \"v9\"")),
        (
            format!("{pack}\nversion: 9.0"),
            "version: expected a text, found the number 9.0 (put it in quotes)".into(),
        ),
        (format!("{pack}\nversion: --upload-pack=x"), "begins with a dash".into()),
        (format!("{pack}\nuser: nosuchuser"), "there is no user \"nosuchuser\"".into()),
        (format!("{pack}#nosuch"), "has no revision \"nosuch\"".into()),
        ("buildpack_url: --help".into(), "bad repository URL \"--help\"".into()),
        (
            "buildpack_urls: []".into(),
            "needs one of the keys buildpack_url, buildpack_urls and buildpacks".into(),
        ),
    ] {
        let ended = world.build(&world.yaml(&app, &more)).expect(2);
        assert!(ended.error().contains(&expected), "{more}: {}", ended.error());
        world.assert_no_build();
    }
    let missing = world.build(Path::new("/nosuch/build.yaml")).expect(2);
    assert!(missing.error().starts_with("cannot read /nosuch/build.yaml: "), "{}", missing.error());
    assert_eq!(ended(&mut world.vbuild(&["build", "--timeout", "soon"], &app)).code, Some(2));
}

#[test]
fn a_repository_that_is_not_there_is_no_bad_input() {
    let world = World::new();
    let pack = world.pack("pack", "true");
    let yaml = world.yaml(&world.path("nosuch"), &format!("buildpack_url: {}", pack.display()));
    let ended = world.build(&yaml).expect(1);
    let expected = format!("cannot read the repository {}", world.path("nosuch").display());
    assert!(ended.error().starts_with(&expected), "{}", ended.error());
    world.assert_no_build();
}

#[test]
fn failures_are_data_with_json() {
    let world = World::new();
    let (app, pack) = (world.app(), world.pack("pack", "echo some words; exit 1"));
    let no = world.git("no", &[("bin/detect", "#!/bin/sh\nexit 1\n")]);
    let log = world.path("out/compile.log").display().to_string();
    let check = |more: &str, expected: serde_json::Value| {
        let yaml = world.yaml(&app, more);
        let code = expected["exit_code"].as_i64().unwrap() as i32;
        let ended = ended(&mut world.vbuild(&["build", "--json", "-q"], &yaml)).expect(code);
        assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
        let mut value: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(value["error"].as_str(), Some(ended.error()));
        let has_hint = value["hint"].as_str().is_some_and(|hint| ended.stderr.contains(hint));
        assert_eq!(has_hint, !value["hint"].is_null(), "{value}");
        value["hint"] = has_hint.into();
        assert_eq!(value, expected);
        world.assert_no_build();
    };
    check(
        &format!("buildpack_urls: [{}]", pack.display()),
        json!({
            "ok": false, "exit_code": 4, "step": "compile", "log": log, "hint": true,
            "error": "compile failed: bin/compile of pack ended with exit code 1",
            "last_lines": ["-----> Toy app detected", "some words"],
        }),
    );
    check(
        &format!("buildpack_urls: [{}]", no.display()),
        json!({
            "ok": false, "exit_code": 3, "step": "compile", "log": null, "hint": true,
            "error": "no buildpack matched: tried no", "last_lines": [],
        }),
    );
    check(
        &format!("buildpack_url: {}\nversion: v9", pack.display()),
        json!({
            "ok": false, "exit_code": 2, "step": "checkout", "log": null, "hint": false,
            "error": format!("{} has no revision \"v9\"", app.display()), "last_lines": [],
        }),
    );
    let nosuch = world.path("nosuch.yaml");
    let ended = ended(&mut world.vbuild(&["build", "--json"], &nosuch)).expect(2);
    let value: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(value["error"].as_str().unwrap().starts_with(&format!("cannot read {}", nosuch.display())));
    assert_eq!((&value["step"], &value["exit_code"]), (&serde_json::Value::Null, &2.into()));
}
