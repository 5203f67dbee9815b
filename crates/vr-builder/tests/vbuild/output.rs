//! The three files, and what is said on the way.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use crate::support::{Meeting, Started, World, commit, ended, printed};

#[test]
fn a_result_fed_back_gives_the_same_build() {
    let world = World::new();
    let yaml =
        world.yaml_with("mkdir $1/made; date +%N > /tmp/now; echo made > $1/made/file; ln -s made $1/link");
    world.build(&yaml).expect(0);
    let first = world.result();
    let md5 = first["build_md5"].as_str().unwrap().to_owned();
    assert_eq!(vr_common::fetch::md5_file(&world.out("build.tar.gz")).unwrap(), md5);
    assert_eq!(world.packed(), ["Procfile", "link", "made", "made/file", "src", "src/main.py"]);
    // The buildpack goes on; the result names the revision that was used.
    world.write("pack", &[("bin/compile", "#!/bin/sh\nexit 1\n")]);
    commit(&world.path("pack"), "v2");
    let again = world.path("again.yaml");
    fs::copy(world.out("build_result.yaml"), &again).unwrap();
    let ended = world.build(&again).expect(0);
    assert!(!ended.stderr.contains("note:"), "{}", ended.stderr);
    assert_eq!(world.result(), first);
    assert_eq!(vr_common::fetch::md5_file(&world.out("build.tar.gz")).unwrap(), md5);
    // An expected sum that is another one is worth a word.
    let text = fs::read_to_string(&again).unwrap().replace(&md5, &"0".repeat(32));
    fs::write(&again, text).unwrap();
    let ended = world.build(&again).expect(0);
    assert!(
        ended.stderr.contains("note: the tarball is not the one that build_md5 names"),
        "{}",
        ended.stderr
    );
    assert_eq!(world.result()["build_md5"].as_str(), Some(md5.as_str()));
}

#[test]
fn slugignore_removes_what_it_names_and_nothing_else() {
    let world = World::new();
    fs::create_dir_all(world.path("beside")).unwrap();
    fs::write(world.path("beside/precious"), "x").unwrap();
    let ignore = format!(
        "# not for production\n\n/docs\n*.psd\nout/link/*\nabsolute/*\n../../../precious\n{}/*\n/etc/passwd\n",
        world.path("beside").display()
    );
    let app = world.git(
        "app",
        &[
            (".slugignore", &ignore),
            ("docs/a/b.md", "x"),
            ("big.psd", "x"),
            ("src/kept.psd", "x"),
            ("out/kept", "x"),
        ],
    );
    symlink("../../../../etc", app.join("out/link")).unwrap();
    symlink(world.path("beside"), app.join("absolute")).unwrap();
    commit(&app, "v2");
    let pack = world.pack("pack", "true");
    let yaml = world.yaml(&app, &format!("buildpack_url: {}\nversion: v2", pack.display()));
    let ended = world.build(&yaml).expect(0);
    assert_eq!(
        world.packed(),
        [".slugignore", "absolute", "out", "out/kept", "out/link", "src", "src/kept.psd"]
    );
    assert!(world.path("beside/precious").exists() && fs::exists("/etc/passwd").unwrap());
    assert!(
        ended
            .stderr
            .contains(".slugignore: \"../../../precious\" leads out of the app's folder; passed over\n"),
        "{}",
        ended.stderr
    );
    world.assert_clean();
}

#[test]
fn output_is_shown_while_it_comes_and_a_reader_that_leaves_changes_nothing() {
    let world = World::new();
    let meeting = Meeting::new();
    let yaml = world.yaml_with(&format!("echo first; {}; seq 200000; echo last", meeting.script()));
    let mut build = Started::new(&mut world.vbuild(&["build"], &yaml));
    // Shown although the build cannot go on yet.
    build.until_output("first");
    let mut met = meeting.wait();
    assert_eq!(world.log(), "-----> Toy app detected\nfirst\n");
    drop(build.0.stdout.take());
    met.write_all(b"go\n").unwrap();
    build.end().expect(0);
    assert_eq!(world.log().lines().count(), 200_003);
    world.assert_clean();
}

#[test]
fn quiet_says_nothing_and_json_says_all_in_one_line() {
    let world = World::new();
    let yaml = world.yaml_with("echo noise");
    let quiet = ended(&mut world.vbuild(&["build", "--quiet"], &yaml)).expect(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert_eq!(world.log(), "-----> Toy app detected\nnoise\n");
    let talk =
        ended(&mut world.vbuild(&["build", "--json", "--output", "../elsewhere/deep"], &yaml)).expect(0);
    let line = talk.stdout.lines().last().unwrap();
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(value["ok"], true);
    assert_eq!(value["build"]["build_md5"], world.result()["build_md5"].as_str().unwrap());
    assert_eq!(value["build"]["version"], "v1");
    let mut keys: Vec<&str> = value["build"].as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "app_name",
            "app_revision",
            "build_md5",
            "buildpack_url",
            "buildpack_version",
            "buildpacks",
            "bytes",
            "cache_bytes",
            "entries",
            "log",
            "seconds",
            "steps",
            "tarball",
            "version"
        ]
    );
    let steps: Vec<&str> = value["build"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["wait", "checkout", "compile", "slugignore", "pack", "cache"]);
    assert_eq!(value["build"]["entries"], 3);
    assert!(talk.stderr.contains(" s  compile\n") && talk.stderr.contains(" s  in all\n"), "{}", talk.stderr);
    assert!(world.path("elsewhere/deep/build.tar.gz").exists());
    assert!(talk.stderr.contains("vbuild: toy v1 is built: "), "{}", talk.stderr);
}

#[test]
fn two_builds_into_one_folder_come_one_after_the_other() {
    let world = World::new();
    let meeting = Meeting::new();
    let one = world.yaml_with(&format!("echo one >$1/which; {}", meeting.script()));
    let first = Started::new(&mut world.vbuild(&["build"], &one));
    let mut met = meeting.wait();
    let other = world.git("other", &[("x", "x")]);
    let pack = world.pack("other-pack", "echo two >$1/which");
    let other = world.yaml(&other, &format!("buildpack_url: {}", pack.display()));
    let hurried = ended(&mut world.vbuild(&["build", "--lock-timeout", "100ms"], &other)).expect(5);
    let out = world.out("").canonicalize().unwrap();
    let holder = format!("process {}, which holds {}", first.0.id(), out.display());
    assert_eq!(hurried.error(), format!("gave up after 100ms of waiting for {holder}"));
    let mut second = Started::new(&mut world.vbuild(&["build"], &other));
    second.until_said(&format!("waiting for {holder}"));
    met.write_all(b"go\n").unwrap();
    first.end().expect(0);
    second.end().expect(0);
    assert_eq!((world.packed().contains(&"x".to_owned()), world.log()), (true, String::new()));
    world.assert_clean();
}

#[test]
fn the_line_of_json_is_one_of_its_own() {
    for (compile, code) in [("printf 'no newline'", 0), ("printf 'no newline'; exit 1", 4)] {
        let world = World::new();
        let ended = ended(&mut world.vbuild(&["build", "--json"], &world.yaml_with(compile))).expect(code);
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(&lines[..2], ["-----> Toy app detected", "no newline"]);
        let value: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
        assert_eq!((value["ok"].as_bool(), lines.len()), (Some(code == 0), 3));
        assert_eq!(world.log(), "-----> Toy app detected\nno newline");
    }
}

#[test]
fn the_shell_has_what_a_build_has() {
    let world = World::new();
    let yaml = world.yaml_with("echo compiled | tee -a $1/made $2/kept; [ -z \"$STOP\" ]");
    world.build(&yaml).expect(0);
    let built = world.path("built");
    fs::create_dir(&built).unwrap();
    let reader = vr_common::archive::open_tarball(&world.out("build.tar.gz")).unwrap();
    tar::Archive::new(reader).unpack(&built).unwrap();
    let files = world.out("build.tar.gz").metadata().unwrap().len();

    let list = "find . -printf '%y %m %P %l\\n' | sort; find . -type f -exec md5sum '{}' + | sort";
    let commands = format!(
        "id -un; echo $BUILDPACK_DIRS; pwd; /builder.sh /build/* /cache/buildpack_cache; cat /cache/*/kept
         cd /build/*; {list}; STOP=x /builder.sh /build/* /cache/buildpack_cache; echo status $?; exit 7\n"
    );
    let mut shell = world.vbuild(&["shell", "-q"], &yaml);
    shell.stdin(Stdio::piped());
    let mut shell = Started::new(&mut shell);
    let mut stdin = shell.0.stdin.take().unwrap();
    stdin.write_all(commands.as_bytes()).unwrap();
    drop(stdin);
    let ended = shell.end().expect(7);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[0], "nobody");
    assert!(lines[1].starts_with("/pack-") && lines[2].starts_with("/build/app-"), "{lines:?}");
    assert_eq!(lines[3..7], ["-----> Toy app detected", "compiled", "compiled", "compiled"]);
    let there = printed(vr_common::process::command("sh").args(["-c", list]).current_dir(&built));
    let (here, end) = lines[7..].split_at(there.lines().count());
    assert_eq!(here, there.lines().collect::<Vec<_>>());
    assert_eq!(end, ["-----> Toy app detected", "compiled", "status 4"]);

    // Nothing of it is kept.
    assert_eq!(world.out("build.tar.gz").metadata().unwrap().len(), files);
    assert_eq!(fs::read_to_string(world.cache().join("kept")).unwrap(), "compiled\n");
    world.assert_clean();
}
