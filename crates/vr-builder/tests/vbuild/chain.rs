//! Several buildpacks in a row for one app.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{World, commit, hg};

const ONE: &str = r#"#!/bin/bash
echo "-----> One: ${FROM_ONE-nothing yet}, $(command -v tool || echo no tool)"
mkdir -p "$1/tools"
printf '#!/bin/sh\necho the tool of one\n' >"$1/tools/tool"
chmod +x "$1/tools/tool"
echo one >>"$2/shared"
cat >"${0%/bin/compile}/export" <<END
set -eu
declare -A names=([one]=yes)
[[ \${names[one]} == y* ]]
export PATH="$1/tools:\$PATH" FROM_ONE="\${names[one]}"
END
"#;

const TWO: &str = r#"#!/bin/bash
echo "-----> Two: $FROM_ONE, $(tool), ${not_set-fine}"
tail -n 1 "$2/shared"
echo two >>"$2/shared"
echo "export FROM_TWO=really" >"${0%/bin/compile}/export"
"#;

const THREE: &str = r#"#!/bin/bash
echo "-----> Three: $FROM_ONE, $FROM_TWO, $(tool)"
tail -n 1 "$2/shared"
"#;

const OUTPUT: &str = "\
-----> First app detected
-----> One: nothing yet, no tool
-----> two app detected
-----> Two: yes, the tool of one, fine
one
-----> Third app detected
-----> Three: yes, really, the tool of one
two
";

/// One in git, one in Mercurial, one by a URL with a revision.
fn three(world: &World) -> [PathBuf; 3] {
    let release = "#!/bin/sh\necho 'config_vars: {A: one, B: one}\ndefault_process_types: {web: of one}'\n";
    let one = world.git(
        "one",
        &[("bin/detect", "#!/bin/sh\necho First\n"), ("bin/compile", ONE), ("bin/release", release)],
    );
    // It says yes without a word, and has no bin/release.
    let two = world.hg("two", &[("bin/detect", "#!/bin/sh\n"), ("bin/compile", TWO)]);
    let release = "#!/bin/sh\necho 'config_vars: {B: three}'\n";
    let detect = "#!/bin/sh\n[ -x \"$1/tools/tool\" ] && echo Third\n";
    let three =
        world.git("three", &[("bin/detect", detect), ("bin/compile", THREE), ("bin/release", release)]);
    break_it(&three, "v2");
    [one, two, three]
}

fn break_it(pack: &Path, tag: &str) {
    fs::write(pack.join("bin/compile"), "#!/bin/sh\nexit 1\n").unwrap();
    commit(pack, tag);
}

fn all(packs: &[&str]) -> String {
    format!("buildpacks: ['{}']", packs.join("', '"))
}

#[test]
fn buildpacks_in_a_row_see_what_those_before_them_did() {
    let world = World::new();
    let [one, two, three] = three(&world);
    let urls =
        [one.display().to_string(), two.display().to_string(), format!("file://{}#v1", three.display())];
    let more = format!(
        "{}\nbuildpack_url: /nosuch/a\nbuildpack_urls: [/nosuch/b]",
        all(&[&urls[0], &urls[1], &urls[2]])
    );
    let ended = world.build(&world.yaml(&world.app(), &more)).expect(0);
    assert_eq!(ended.stdout, OUTPUT);
    assert_eq!(world.log(), OUTPUT);
    assert_eq!(world.packed(), ["Procfile", "src", "src/main.py", "tools", "tools/tool"]);

    let first = world.result();
    let release: serde_yaml::Value =
        serde_yaml::from_str("{default_process_types: {web: of one}, config_vars: {A: one, B: three}}")
            .unwrap();
    assert_eq!(first["release_data"], release);
    let pinned: Vec<&str> =
        first["buildpacks"].as_sequence().unwrap().iter().map(|url| url.as_str().unwrap()).collect();
    for (pinned, url) in pinned.iter().zip(&urls) {
        let (found, hash) = pinned.rsplit_once('#').unwrap();
        assert_eq!((found, hash.len()), (url.trim_end_matches("#v1"), 40));
        assert!(ended.stderr.contains(&format!(" at {hash}")), "{}", ended.stderr);
    }
    assert_eq!(first["buildpack_url"].as_str(), Some(pinned[2]));
    assert!(pinned[2].ends_with(first["buildpack_version"].as_str().unwrap()));

    // Whatever becomes of the buildpacks, the result names those that were used.
    let md5 = world.md5();
    break_it(&one, "broken");
    fs::write(two.join("bin/compile"), "#!/bin/sh\nexit 1\n").unwrap();
    hg(&two, &["commit", "-m", "broken"]);
    let again = world.path("again.yaml");
    fs::copy(world.out("build_result.yaml"), &again).unwrap();
    assert_eq!(world.build(&again).expect(0).stdout, OUTPUT);
    assert_eq!((world.result(), world.md5()), (first, md5));
    assert_eq!(fs::read_to_string(world.cache().join("shared")).unwrap(), "one\ntwo\none\ntwo\n");
    world.assert_clean();
}

#[test]
fn one_that_does_not_want_the_app_ends_the_build() {
    let world = World::new();
    let yes = world.pack("yes", "echo compiled; echo x >$1/made; echo x >$2/kept");
    let no = world.git("no", &[("bin/detect", "#!/bin/sh\necho not mine\nexit 1\n")]);
    let (yes, no) = (yes.display().to_string(), no.display().to_string());
    let app = world.app();
    for (packs, log) in [([&yes, &no], Some("-----> Toy app detected\ncompiled\n")), ([&no, &yes], None)] {
        let ended = world.build(&world.yaml(&app, &all(&[packs[0], packs[1]]))).expect(3);
        assert_eq!(
            ended.error(),
            "no buildpack matched: bin/detect of no, which is one of buildpacks, says no"
        );
        assert!(
            ended.stderr.contains("\n  | not mine\nhint: take it out of buildpacks, "),
            "{}",
            ended.stderr
        );
        assert_eq!(fs::read_to_string(world.out("compile.log")).ok().as_deref(), log);
        world.assert_no_build();
        assert_eq!(world.caches(), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_export_that_ends_the_build_is_named() {
    let world = World::new();
    let app = world.app();
    let next = world.pack("next", "echo never >&2").display().to_string();
    for (number, export) in ["exit 0", "exit 3", "exit 4", "set -eu; false", "kill -9 $$"].iter().enumerate()
    {
        let name = format!("pack{number}");
        let pack = world.pack(&name, "echo x >$2/kept");
        world.write(&name, &[("export", &format!("{export}\n"))]);
        commit(&pack, "v2");
        let ended = world.build(&world.yaml(&app, &all(&[&pack.display().to_string(), &next]))).expect(4);
        assert_eq!(
            ended.error(),
            format!("compile failed: the file export of {name} ended the build"),
            "{export}"
        );
        assert_eq!(ended.stdout, "-----> Toy app detected\n", "{export}");
        world.assert_no_build();
        assert_eq!(world.caches(), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_empty_list_is_as_good_as_none() {
    let world = World::new();
    let pack = world.pack("pack", "echo built; echo 'exit 1' >${0%/bin/compile}/export");
    let more = format!("buildpacks: []\nbuildpack_url: {}", pack.display());
    assert_eq!(world.build(&world.yaml(&world.app(), &more)).expect(0).stdout, "built\n");
    assert!(world.result().get("buildpacks").is_some_and(|packs| packs.as_sequence().unwrap().is_empty()));
    // The last one's export is for nobody.
    let chain = all(&[&pack.display().to_string()]);
    let ended = world.build(&world.yaml(&world.path("app"), &chain)).expect(0);
    assert_eq!(ended.stdout, "-----> Toy app detected\nbuilt\n");
    world.assert_clean();
}
