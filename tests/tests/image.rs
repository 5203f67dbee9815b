//! A real Debian, made by debootstrap, provisioned by vimage with packages of a repository on the loopback interface,
//! and used as people use an image: procs run in it, apps are built in it, and further images are made of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vr_common::build_data::BuildData;
use vr_common::fetch::md5_file;
use vr_common::image_data::ImageData;
use vr_common::process::{command, sibling};
use vr_testing::Server;
use vr_tests::machine::processes_of;
use vr_tests::{Debian, Repository};

/// What the image is made by. `netcat-openbsd` needs a library that is not in the base, and chooses an alternative for
/// `nc` in a script that runs after it is installed.
const PROVISION: &str = r#"#!/bin/bash
set -e
echo "deb [trusted=yes] $REPOSITORY ./" > /etc/apt/sources.list
apt-get update
apt-get install --yes --no-install-recommends hello netcat-openbsd libcap2-bin
apt-get clean
useradd --system --home-dir /srv/keeper --create-home keeper
rm /etc/issue.net
echo "provisioned for $CUSTOMER" > /etc/provisioned
cp /usr/bin/hello /usr/local/bin/hello-raw
setcap cap_net_raw=ep /usr/local/bin/hello-raw
echo 'said on standard error' >&2
"#;

/// What a proc prints of the image that it is in.
const LOOK: &str = r#"id --user --name
hello
cat /etc/provisioned
readlink /etc/alternatives/nc
nc -h 2>&1 | head --lines 1
ls /etc/issue.net 2>&1
dpkg-query --show --showformat '${Status}\n' hello
dpkg --audit
"#;

/// Begins in the middle of a package that is not there.
const FAILS: &str = "#!/bin/sh -e
echo half > /etc/half
apt-get install --yes no-such-package
";

/// Made of the first image, not of the base.
const AGAIN: &str = r#"#!/bin/sh -e
apt-get update
apt-get check
apt-get purge --yes netcat-openbsd
apt-get install --yes --reinstall hello
echo "audit:$(dpkg --audit)."
echo again >> /etc/provisioned
"#;

/// GNU tar's options for a list with attributes, which it shows only when asked this much.
const LIST: &[&str] = &["--list", "-vvv", "--xattrs", "--xattrs-include=*"];

/// A folder with everything that the programs write; it goes at the end, and all that runs in it.
struct World {
    dir: tempfile::TempDir,
    debian: Debian,
    packages: Server,
    /// Procs that were set up.
    procs: Vec<PathBuf>,
}

/// How a program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A tarball under the keys that builds and procs name it by.
struct Image {
    name: &'static str,
    tarball: PathBuf,
    md5: String,
}

impl Ended {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl Image {
    /// As `build.yaml` and `proc.yaml` have it.
    fn keys(&self) -> String {
        let (name, tarball, md5) = (self.name, self.tarball.display(), &self.md5);
        format!("image_name: {name}\nimage_url: {tarball}\nimage_md5: {md5}\n")
    }
}

impl World {
    fn new() -> Self {
        let debian = Debian::prepared();
        let dir = tempfile::Builder::new().prefix("vr-image-").tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("out")).expect("a folder for output");
        Self { packages: debian.serve(), dir, debian, procs: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path
    }

    /// Runs one of our programs to its end, in the folder for output.
    fn run(&self, program: &str, arguments: &[&str], file: &Path) -> Ended {
        let output = command(sibling(program))
            .args(arguments)
            .arg(file)
            .current_dir(self.path("out"))
            .env("VR_ROOT", self.path("root"))
            .env_remove("RAPTOR_HOME")
            .output()
            .unwrap_or_else(|error| panic!("{program} (cargo build --workspace --bins makes it): {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs vimage on a script.
    fn vimage(&self, name: &str, base: (&Path, &str), script: &str, options: &[&str]) -> Ended {
        let script = self.write(&format!("{name}.sh"), script);
        let yaml = self.write(
            &format!("{name}.yaml"),
            &format!(
                "base_image_url: {}\nbase_image_name: {}\nnew_image_name: {name}\nscript_url: {}\n\
                 env:\n  DEBIAN_FRONTEND: noninteractive\n  REPOSITORY: {}\n  CUSTOMER: the tests\n",
                base.0.display(),
                base.1,
                script.display(),
                self.packages.url("/"),
            ),
        );
        let ended = self.run("vimage", &[&["build"], options].concat(), &yaml);
        assert_eq!(names(&self.path("root/images/.scratch")), [""; 0], "{}", ended.stderr);
        ended
    }

    /// An image that vimage made, with the sum that vimage says it has.
    fn image(&self, name: &'static str, extension: &str) -> Image {
        let tarball = self.out(&format!("{name}.{extension}"));
        let said = ImageData::load(&self.out(&format!("{name}.yaml"))).expect("the new image's YAML file");
        let md5 = md5_file(&tarball).expect("the new image's tarball");
        assert_eq!(said.new_image_md5.as_deref(), Some(md5.as_str()));
        Image { name, tarball, md5 }
    }

    /// Sets a proc up in an image, and gives its YAML file.
    fn set_up(&mut self, name: &str, image: &Image, more: &str) -> PathBuf {
        let proc = self.write(
            &format!("{name}.proc.yaml"),
            &format!(
                "app_name: {name}\nversion: v1\nconfig_name: test\nrelease_hash: abcd1234\nproc_name: web\n\
                 host: localhost\nport: 5001\n{}{more}\n",
                image.keys()
            ),
        );
        self.procs.push(proc.clone());
        self.run("vrun", &["setup"], &proc).expect(0);
        proc
    }

    fn tear_down(&mut self, proc: &Path) {
        self.run("vrun", &["teardown"], proc).expect(0);
        self.procs.retain(|known| known != proc);
        assert_eq!(names(&self.path("root/procs")), [""; 0]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for proc in &self.procs {
            self.run("vrun", &["teardown"], proc);
        }
        let left = processes_of(self.dir.path());
        for (pid, _) in &left {
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left over: {left:#?}");
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
            let folder = self.dir.path().display().to_string();
            assert!(!mounts.contains(&folder), "a mount was left in {folder}:\n{mounts}");
        }
    }
}

/// The names in a folder, sorted; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Runs GNU tar to its end and gives what it printed.
fn tar(arguments: &[&str], tarball: &Path) -> String {
    let output = command("tar").args(arguments).arg("--file").arg(tarball).output().expect("tar");
    assert!(output.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_debian_is_provisioned_run_built_in_and_provisioned_again() {
    let mut world = World::new();
    let image = provision(&world);
    what_is_special_of_files_is_in_the_tarball(&image);
    a_script_that_fails_leaves_nothing_but_its_log(&world);
    a_proc_runs_in_the_image(&mut world, &image);
    an_app_is_built_and_run_in_the_image(&mut world, &image);
    an_image_is_made_of_the_image(&mut world, &image);
}

fn provision(world: &World) -> Image {
    let ended = world.vimage("hello_1", (&world.debian.base(), "debian"), PROVISION, &[]).expect(0);
    assert_eq!(names(&world.path("out")), ["hello_1.log", "hello_1.tar.gz", "hello_1.yaml"]);
    let log = fs::read_to_string(world.out("hello_1.log")).expect("the log");
    assert_eq!(ended.stdout, log);
    for said in ["Setting up hello ", "Setting up libbsd0", "\nsaid on standard error\n"] {
        assert!(log.contains(said), "{said}: {log}");
    }
    world.image("hello_1", "tar.gz")
}

fn what_is_special_of_files_is_in_the_tarball(image: &Image) {
    let list = tar(&[LIST, &["--numeric-owner"]].concat(), &image.tarball);
    let lines: Vec<&str> = list.lines().collect();
    // The mode (with an asterisk for attributes), the owner, and the line below, which has the attributes.
    let found = |path: &str| {
        let at = lines.iter().position(|line| line.ends_with(path));
        let at = at.unwrap_or_else(|| panic!("{path} is not in the tarball"));
        let words: Vec<&str> = lines[at].split_whitespace().take(2).collect();
        (words.join(" "), lines[at + 1])
    };
    // Of the base: set-user-id and set-group-id, the latter for the group shadow.
    assert_eq!(found(" usr/bin/passwd").0, "-rwsr-xr-x 0/0");
    assert_eq!(found(" usr/bin/chage").0, "-rwxr-sr-x 0/42");
    // Of the script.
    let (raw, attributes) = found(" usr/local/bin/hello-raw");
    assert_eq!(raw, "-rwxr-xr-x* 0/0");
    assert!(attributes.ends_with(" security.capability"), "{attributes}");
    assert!(list.contains(" etc/alternatives/nc -> "), "the script of netcat-openbsd did not run");
    assert!(!list.contains(" etc/issue.net") && list.contains(" etc/issue\n"));
    assert!(!list.contains("hello_1.sh") && !list.contains("provision-"), "the script was left in the image");
}

fn a_script_that_fails_leaves_nothing_but_its_log(world: &World) {
    let ended = world.vimage("broken_1", (&world.debian.base(), "debian"), FAILS, &[]).expect(4);
    assert!(ended.stderr.contains("ERROR: the script ended with exit code 100\n"), "{}", ended.stderr);
    let left = names(&world.path("out"));
    assert_eq!(left, ["broken_1.log", "hello_1.log", "hello_1.tar.gz", "hello_1.yaml"]);
    let log = fs::read_to_string(world.out("broken_1.log")).expect("the log");
    assert!(log.contains("Unable to locate package no-such-package"), "{log}");
    assert!(!world.path("root/images/broken_1").exists());
    assert!(!world.path("root/images/debian/contents/etc/half").exists());
}

fn a_proc_runs_in_the_image(world: &mut World, image: &Image) {
    world.write("app/Procfile", "web: sh look.sh\n");
    world.write("app/look.sh", LOOK);
    let uptest = world.write("app/uptests/web/10_hello", "#!/bin/sh\nhello --greeting=\"up on $2\"\n");
    fs::set_permissions(&uptest, fs::Permissions::from_mode(0o755)).expect("the uptest's mode");
    let build = world.path("app.tar.gz");
    let app = world.path("app").display().to_string();
    tar(&["--create", "--gzip", "--directory", &app, "."], &build);

    let proc = world.set_up("look", image, &format!("build_url: {}\nuser: keeper", build.display()));
    let ended = world.run("vrun", &["run"], &proc).expect(0);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..4], ["keeper", "Hello, world!", "provisioned for the tests", "/bin/nc.openbsd"]);
    assert!(lines[4].starts_with("OpenBSD netcat"), "{}", ended.stdout);
    assert!(lines[5].ends_with("No such file or directory"), "{}", ended.stdout);
    assert_eq!(lines[6..], ["install ok installed"], "dpkg --audit found something");
    let uptests = world.run("vrun", &["uptest"], &proc).expect(0);
    let uptests: Value = serde_json::from_str(&uptests.stdout).expect("JSON");
    let expected = serde_json::json!([{"Name": "10_hello", "Output": "up on 5001\n", "Passed": true}]);
    assert_eq!(uptests, expected);
    world.tear_down(&proc);

    // What vrun unpacked has the capability as well.
    let contents = world.path("root/images/hello_1/contents").display().to_string();
    let again = world.path("contents.tar");
    tar(
        &["--create", "--xattrs", "--xattrs-include=*", "--directory", &contents, "usr/local/bin/hello-raw"],
        &again,
    );
    let list = tar(LIST, &again);
    assert!(list.contains(" security.capability\n"), "{list}");
}

fn an_app_is_built_and_run_in_the_image(world: &mut World, image: &Image) {
    let buildpack = Repository::new(&world.path("repos/buildpack"));
    buildpack.write("bin/detect", "#!/bin/sh\ntest -e \"$1/greeting\" && echo Greeter\n");
    buildpack.write(
        "bin/compile",
        "#!/bin/sh -e\necho '-----> Greeting'\nhello --greeting=\"$(cat \"$1/greeting\"), $STACK\" | tee \"$1/compiled\"\n",
    );
    buildpack.commit("first");
    let app = Repository::new(&world.path("repos/greeter"));
    app.write("greeting", "good morning");
    app.write("Procfile", "web: hello --greeting=\"$(cat compiled), running\"\n");
    app.write("uptests/web/10_compiled", "#!/bin/sh\ngrep --count morning /app/compiled\n");
    app.tag("v1");
    let yaml = world.write(
        "greeter.yaml",
        &format!(
            "app_name: greeter\napp_repo_type: git\napp_repo_url: {}\nversion: v1\nbuildpack_urls:\n- {}\nuser: keeper\n{}",
            app.url(),
            buildpack.url(),
            image.keys()
        ),
    );
    let ended = world.run("vbuild", &["build"], &yaml).expect(0);
    assert!(ended.stdout.contains("-----> Greeting\ngood morning, hello_1\n"), "{}", ended.stdout);
    let result = BuildData::load(&world.out("build_result.yaml")).expect("the build's result");
    let tarball = world.out("build.tar.gz");
    assert_eq!(result.build_md5, Some(md5_file(&tarball).expect("the build")));
    assert_eq!(result.image_name.as_deref(), Some("hello_1"));

    let build =
        format!("build_url: {}\nbuild_md5: {}", tarball.display(), result.build_md5.unwrap_or_default());
    let proc = world.set_up("greeter", image, &format!("{build}\nuser: keeper"));
    let ended = world.run("vrun", &["run"], &proc).expect(0);
    assert_eq!(ended.stdout, "good morning, hello_1, running\n");
    let uptests = world.run("vrun", &["uptest"], &proc).expect(0);
    assert_eq!(uptests.stdout.trim_end(), r#"[{"Name":"10_compiled","Output":"1\n","Passed":true}]"#);
    world.tear_down(&proc);
}

fn an_image_is_made_of_the_image(world: &mut World, image: &Image) {
    let base = (image.tarball.as_path(), image.name);
    let ended = world.vimage("hello_2", base, AGAIN, &["--format", "zst"]).expect(0);
    assert!(ended.stdout.contains("\naudit:.\n"), "{}", ended.stdout);
    assert!(!world.out("hello_2.tar.gz").exists());
    let second = world.image("hello_2", "tar.zst");
    // What was purged must not come back from the image below.
    let cmd = r#"bash -c "cat /etc/provisioned; ls /bin/nc* || hello""#;
    let proc = world.set_up("again", &second, &format!("cmd: '{cmd}'\nuser: keeper"));
    let ended = world.run("vrun", &["run"], &proc).expect(0);
    assert_eq!(ended.stdout, "provisioned for the tests\nagain\nHello, world!\n");
    world.tear_down(&proc);
    // The image that it was made of is as it was.
    assert_eq!(md5_file(&image.tarball).expect("the first image"), image.md5);
    let provisioned = world.path("root/images/hello_1/contents/etc/provisioned");
    assert_eq!(fs::read_to_string(provisioned).expect("the first image"), "provisioned for the tests\n");
}
