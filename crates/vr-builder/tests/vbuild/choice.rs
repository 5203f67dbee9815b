//! Which buildpack builds, and what it is asked.

use std::fs;

use crate::support::{World, commit, hg};

fn pack(world: &World, name: &str, detect: &str) -> String {
    let compile = format!("#!/bin/sh\necho built by {name}\n");
    let detect = format!("#!/bin/sh\n{detect}\n");
    world.git(name, &[("bin/detect", &detect), ("bin/compile", &compile)]).display().to_string()
}

#[test]
fn the_first_whose_detect_succeeds_is_used() {
    let world = World::new();
    let app = world.app();
    let no = pack(&world, "no", "echo not mine; exit 1");
    let yes = pack(&world, "yes", "[ -f \"$1/Procfile\" ] && echo Yes");
    let also = pack(&world, "also", "echo Also");
    let ended = world.build(&world.yaml(&app, &format!("buildpack_urls: [{no}, {yes}, {also}]"))).expect(0);
    assert_eq!(ended.stdout, "-----> Yes app detected\nbuilt by yes\n");
    let result = world.result();
    let hash = result["buildpack_version"].as_str().unwrap();
    assert_eq!(hash.len(), 40);
    assert_eq!(result["buildpack_url"].as_str().unwrap(), format!("{yes}#{hash}"));
    assert_eq!(result["buildpack_urls"].as_sequence().unwrap().len(), 3);
    world.assert_clean();
}

#[test]
fn buildpack_url_wins_and_is_not_asked() {
    let world = World::new();
    let app = world.app();
    let no = pack(&world, "no", "touch /tmp/asked; exit 1");
    let yes = pack(&world, "yes", "echo Yes");
    let yaml = world.yaml(&app, &format!("buildpack_url: {no}\nbuildpack_urls: [{yes}]"));
    let ended = world.build(&yaml).expect(0);
    assert_eq!(ended.stdout, "built by no\n");
}

#[test]
fn the_fragment_of_a_buildpacks_url_is_its_revision() {
    let world = World::new();
    let app = world.app();
    let pack = world.pack("pack", "echo old");
    world.write("pack", &[("bin/compile", "#!/bin/sh\necho new\n")]);
    commit(&pack, "v2");
    for (fragment, expected) in [("", "new"), ("#v1", "old"), ("#v2", "new")] {
        let yaml = world.yaml(&app, &format!("buildpack_url: '{}{fragment}'", pack.display()));
        assert_eq!(world.build(&yaml).expect(0).stdout, format!("{expected}\n"), "{fragment}");
    }
    // The same repository twice is two buildpacks.
    let both = format!("buildpack_urls: ['{0}#v1', '{0}#v2']", pack.display());
    assert_eq!(world.build(&world.yaml(&app, &both)).expect(0).stdout, "-----> Toy app detected\nold\n");
}

#[test]
fn no_match_is_said_and_leaves_nothing() {
    let world = World::new();
    let app = world.app();
    let (one, two) = (pack(&world, "one", "echo no; exit 1"), pack(&world, "two", "exit 7"));
    let three = world.git("three", &[("README", "no programs in here\n")]);
    let yaml = world.yaml(&app, &format!("buildpack_urls: [{one}, {two}, {}]", three.display()));
    fs::create_dir_all(world.path("out")).unwrap();
    for stale in ["build.tar.gz", "compile.log"] {
        fs::write(world.out(stale), "of an earlier build").unwrap();
    }
    let ended = world.build(&yaml).expect(3);
    assert_eq!(ended.error(), "no buildpack matched: tried one, two, three");
    assert!(!world.out("compile.log").exists());
    world.assert_no_build();
}

#[test]
fn mercurial_apps_and_buildpacks() {
    let world = World::new();
    let app = world.hg("app", &[("Procfile", "web: x\n")]);
    let pack = world.hg(
        "pack",
        &[
            ("bin/detect", "#!/bin/sh\necho Hg\n"),
            ("bin/compile", "#!/bin/sh\nls -A \"$1\"; ls -A \"${0%/bin/compile}\"\n"),
        ],
    );
    let yaml = world.yaml_of("hg", &app, &format!("buildpack_urls: ['{}#v1']", pack.display()));
    let ended = world.build(&yaml).expect(0);
    assert_eq!(ended.stdout, "-----> Hg app detected\nProcfile\nbin\n");
    assert_eq!(world.result()["app_revisions"]["v1"].as_str().unwrap().len(), 40);
    assert_eq!(world.packed(), ["Procfile"]);
}

#[test]
fn release_data_is_kept_whether_there_is_any_or_not() {
    let world = World::new();
    let app = world.app();
    let pack = world.pack("pack", "true");
    let yaml = world.yaml(&app, &format!("buildpack_url: {}", pack.display()));
    world.build(&yaml).expect(0);
    assert_eq!(world.result()["release_data"], serde_yaml::from_str::<serde_yaml::Value>("{}").unwrap());
    world.write("pack", &[("bin/release", "#!/bin/sh\ntrue\n")]);
    commit(&pack, "v2");
    world.build(&yaml).expect(0);
    assert_eq!(world.result()["release_data"], serde_yaml::from_str::<serde_yaml::Value>("{}").unwrap());
    let release = "#!/bin/sh\necho noise >&2\nprintf 'config_vars:\\n  DIR: %s\\n' \"${1%-*}\"\n";
    world.write("pack", &[("bin/release", release)]);
    commit(&pack, "v3");
    world.build(&yaml).expect(0);
    assert_eq!(world.result()["release_data"]["config_vars"]["DIR"].as_str(), Some("/build/app"));
}

#[test]
fn the_manuals_examples_run_as_written_but_for_their_urls() {
    let world = World::new();
    let app = world
        .hg("vr_python_example", &[("requirements.txt", "flask\n"), ("Procfile", "web: python app.py\n")]);
    hg(&app, &["tag", "v3"]);
    let no = [("bin/detect", "#!/bin/sh\nexit 1\n"), ("bin/compile", "#!/bin/sh\nexit 9\n")];
    let (nodejs, scala) =
        (world.git("heroku-buildpack-nodejs", &no), world.git("heroku-buildpack-scala", &no));
    let python = world.git(
        "yg-buildpack-python2",
        &[
            ("bin/detect", "#!/bin/sh\n[ -f $1/requirements.txt ] && echo Python\n"),
            ("bin/compile", "#!/bin/sh\necho '-----> Preparing Python environment'\ncp $1/requirements.txt $1/installed\n"),
        ],
    );
    let beginning =
        format!("app_name: vr_python_example\napp_repo_type: hg\napp_repo_url: {}\n", app.display());
    let list =
        format!("buildpack_urls:\n- {}\n- {}\n- {}\n", nodejs.display(), scala.display(), python.display());
    let one = format!("buildpack_url: {}\n", python.display());
    let mut sums = Vec::new();
    for (how, headings) in [
        (list, "-----> Python app detected\n-----> Preparing Python environment\n"),
        (one, "-----> Preparing Python environment\n"),
    ] {
        let yaml = world.path("my_app.yaml");
        fs::write(&yaml, format!("{beginning}{how}version: v3\n")).unwrap();
        world.build(&yaml).expect(0);
        assert_eq!(world.log(), headings);
        assert!(world.packed().contains(&"installed".to_owned()));
        assert!(
            world.result()["buildpack_url"].as_str().unwrap().starts_with(&format!("{}#", python.display()))
        );
        sums.push(world.md5());
    }
    assert_eq!(sums[0], sums[1]);
}
