//! Buildpacks of three kinds, written as Heroku documents them: files only, a download, a compiler. And what a
//! buildpack is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Answer, Server, World, ended};

/// Fails where anything does, as most public ones do.
fn pack(world: &World, detect: &str, compile: &str, release: &str) -> String {
    let pack = world.git(
        "pack",
        &[
            ("bin/detect", &format!("#!/usr/bin/env bash\n{detect}\n")),
            (
                "bin/compile",
                &format!(
                    "#!/usr/bin/env bash\nset -eo pipefail\nBUILD_DIR=$1 CACHE_DIR=$2 ENV_DIR=$3\n{compile}\n"
                ),
            ),
            ("bin/release", &format!("#!/usr/bin/env bash\n{release}\n")),
        ],
    );
    format!("buildpack_urls: [{}]", pack.display())
}

#[test]
fn one_for_static_files() {
    let world = World::new();
    let pack = pack(
        &world,
        "[ -f \"$1/index.html\" ] && echo Static || exit 1",
        "echo '-----> Copying files'
         mkdir -p $BUILD_DIR/public $BUILD_DIR/.profile.d
         cp $BUILD_DIR/*.html $BUILD_DIR/public/
         echo 'export DOCUMENT_ROOT=$HOME/public' >$BUILD_DIR/.profile.d/static.sh
         echo '       done' >&2",
        "cat <<END\n---\nconfig_vars:\n  PORT_NAME: web\ndefault_process_types:\n  web: ./serve \\$PORT\nEND",
    );
    let app = world.git("site", &[("index.html", "<p>Hello\n"), ("Procfile", "web: ./serve $PORT\n")]);
    let ended = world.build(&world.yaml(&app, &pack)).expect(0);
    assert_eq!(ended.stdout, "-----> Static app detected\n-----> Copying files\n       done\n");
    assert_eq!(
        world.packed(),
        [".profile.d", ".profile.d/static.sh", "Procfile", "index.html", "public", "public/index.html"]
    );
    let release = &world.result()["release_data"];
    assert_eq!(release["default_process_types"]["web"].as_str(), Some("./serve $PORT"));
    assert_eq!(release["config_vars"]["PORT_NAME"].as_str(), Some("web"));
    let ended = world.build(&world.yaml(&world.app(), &pack)).expect(3);
    assert_eq!(ended.error(), "no buildpack matched: tried pack");
    assert!(!world.out("build.tar.gz").exists());
    world.assert_clean();
}

#[test]
fn one_that_downloads_does_so_once() {
    let world = World::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = Server::start(move |path| match path {
        "/runtime" => {
            count.fetch_add(1, Ordering::SeqCst);
            Answer::Body(b"the runtime\n".to_vec())
        }
        _ => Answer::Body(b"something else\n".to_vec()),
    });
    let md5 = md5_of(&world, "the runtime\n");
    let address = server.url("").trim_start_matches("http://").replace(':', "/");
    // `curl` is not on every machine that runs the tests.
    let compile = format!(
        "name=$(cat $BUILD_DIR/runtime.txt)
         fetch() {{ exec 9<>/dev/tcp/{address}; printf \"GET /$name HTTP/1.0\\r\\n\\r\\n\" >&9; sed '1,/^\\r$/d' <&9; }}
         check() {{ echo '{md5}  '$CACHE_DIR/$name | md5sum --check --quiet; }}
         if [ ! -f $CACHE_DIR/$name ]; then
             echo '-----> Fetching'
             fetch >$CACHE_DIR/$name
         fi
         check || {{ echo ' !     wrong checksum'; exit 1; }}
         cp $CACHE_DIR/$name $BUILD_DIR/"
    );
    let pack = pack(&world, "echo Runtime", &compile, "echo '{}'");
    let other = world.yaml(&world.git("other", &[("runtime.txt", "other\n")]), &pack);
    let yaml = world.yaml(&world.git("app", &[("runtime.txt", "runtime\n")]), &pack);
    assert_eq!(world.build(&yaml).expect(0).stdout, "-----> Runtime app detected\n-----> Fetching\n");
    let md5 = world.md5();

    let failed = world.build(&other).expect(4);
    assert_eq!(failed.error(), "compile failed: bin/compile of pack ended with exit code 1");
    assert!(failed.stderr.contains("\n  |  !     wrong checksum\n"), "{}", failed.stderr);
    assert_eq!(world.caches().len(), 1, "what a failed build fetched is not kept");

    drop(server);
    assert_eq!(world.build(&yaml).expect(0).stdout, "-----> Runtime app detected\n");
    assert_eq!((world.md5(), asked.load(Ordering::SeqCst)), (md5, 1));
    let failed = ended(&mut world.vbuild(&["build", "--no-cache"], &yaml)).expect(4);
    assert!(failed.stderr.contains("Connection refused"), "{}", failed.stderr);
    assert_eq!(world.caches().len(), 1, "what was saved before is still there");
    assert!(!world.out("build.tar.gz").exists());
    world.assert_clean();
}

fn md5_of(world: &World, text: &str) -> String {
    let file = world.write("sums", &[("file", text)]).join("file");
    vr_common::fetch::md5_file(&file).unwrap()
}

#[test]
fn one_that_compiles() {
    let world = World::new();
    let pack = pack(
        &world,
        "[ -f $1/Makefile ] && echo C",
        "make --directory=$BUILD_DIR CFLAGS=\"$(cat $ENV_DIR/CFLAGS)\" && rm $BUILD_DIR/hello.o && $BUILD_DIR/hello",
        "echo 'default_process_types: {web: ./hello}'",
    );
    let main = "#include <stdio.h>\nint main(void) { return puts(GREETING) < 0; }\n";
    let app = world.git("app", &[("hello.c", main), ("Makefile", "hello: hello.o\n")]);
    let yaml = world.yaml(&app, &format!("{pack}\nenv: {{CFLAGS: '-O1 -DGREETING=\"\\\"hi there\\\"\"'}}"));
    let ended = world.build(&yaml).expect(0);
    assert!(ended.stdout.ends_with("\nhi there\n"), "{}", ended.stdout);
    assert_eq!(world.packed(), ["Makefile", "hello", "hello.c"]);
    let unpacked = world.path("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let mut archive =
        tar::Archive::new(vr_common::archive::open_tarball(&world.out("build.tar.gz")).unwrap());
    archive.unpack(&unpacked).unwrap();
    assert_eq!(fs::metadata(unpacked.join("hello")).unwrap().permissions().mode() & 0o777, 0o755);
    world.assert_clean();
}

#[test]
fn a_buildpack_is_told_what_heroku_tells_it() {
    let world = World::new();
    let pack = pack(
        &world,
        "echo Told",
        r#"env | grep -vE '^(_|PWD|OLDPWD|SHLVL)=' | sort >$BUILD_DIR/environment
           cd $ENV_DIR
           for name in *; do echo "$name $(stat -c '%a %U' $name) $(od -An -c $name | tr -s ' ')"; done
           ls -ld $ENV_DIR | cut -c1-10"#,
        "test -f $1/environment",
    );
    let settings = "env: {SECRET: 'p w', NUMBER: 1e3, EMPTY: '', LINES: \"a\\nb\"}\nstack: heroku-24";
    let yaml = world.yaml(&world.app(), &format!("{pack}\n{settings}"));
    let first = world.build(&yaml).expect(0);
    assert_eq!(
        first.stdout,
        "-----> Told app detected\nEMPTY 400 nobody \nLINES 400 nobody  a \\n b\nNUMBER 400 nobody  1 e 3\n\
         SECRET 400 nobody  p w\ndrwxr-xr-x\n"
    );
    let environment = || {
        let mut archive =
            tar::Archive::new(vr_common::archive::open_tarball(&world.out("build.tar.gz")).unwrap());
        let mut text = String::new();
        let is_it = |entry: &tar::Entry<'_, _>| entry.path().unwrap().ends_with("environment");
        let mut entry = archive.entries().unwrap().map(Result::unwrap).find(is_it).unwrap();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        text
    };
    let told = environment();
    let lines: Vec<(&str, &str)> = told.lines().map(|line| line.split_once('=').unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["HOME", "LANG", "PATH", "REQUEST_ID", "SOURCE_VERSION", "STACK", "TMPDIR"]);
    let value = |name: &str| lines.iter().find(|(found, _)| *found == name).unwrap().1;
    assert_eq!(Some(value("SOURCE_VERSION")), world.result()["app_revisions"]["v1"].as_str());
    assert_eq!((value("STACK"), value("HOME"), value("TMPDIR")), ("heroku-24", "/app", "/tmp"));
    assert!(value("REQUEST_ID").starts_with("app-"), "{told}");
    assert_eq!(world.packed(), ["Procfile", "environment", "src", "src/main.py"]);

    world.build(&yaml).expect(0);
    let differing: Vec<&str> =
        told.lines().filter(|line| !environment().lines().any(|other| other == *line)).collect();
    assert!(differing.len() == 1 && differing[0].starts_with("REQUEST_ID="), "{differing:?}");
    world.assert_clean();
}
