//! The Debian that the whole-system tests make images of: debootstrap's smallest system as a tarball, and a few
//! packages as a flat repository. It is made once, from where this machine's apt gets its own packages.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use vr_common::archive::remove_tree;
use vr_common::lock::FileLock;
use vr_common::process::command;
use vr_tests::debian::{BASE, Debian, PACKAGES};

use crate::steps;

/// What the tests install: a program, one with a library of its own and a script that runs after it is installed, and
/// what gives files capabilities.
const INSTALLED: [&str; 3] = ["hello", "netcat-openbsd", "libcap2-bin"];
/// What a provisioned Debian hardly needs, but makes up a third of its files.
const LEFT_OUT: [&str; 3] = ["./usr/share/doc/*", "./usr/share/locale/*", "./usr/share/man/*"];
/// Says what a Debian was made of; written last.
const RECIPE: &str = "recipe";

/// Makes the Debian, unless it is there.
pub fn prepare() -> Result<()> {
    let place = Debian::folder();
    let target = place.parent().context("the folder for the Debian is the root")?;
    fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    let _lock = FileLock::wait(&place.with_extension("lock"), || {
        eprintln!("waiting for another cargo xtask, which prepares the tests' Debian");
    })?;
    let suite = suite()?;
    let recipe = format!("{suite} {} without {}\n", INSTALLED.join(" "), LEFT_OUT.join(" "));
    if fs::read_to_string(place.join(RECIPE)).is_ok_and(|made| made == recipe) {
        return Ok(());
    }
    let mirror = mirror(&suite)?;
    // It stays when something fails, for the log in it, until the next run.
    let aside = place.with_extension("new");
    for old in [&aside, &place] {
        remove_tree(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    fs::create_dir_all(aside.join(PACKAGES)).with_context(|| format!("cannot make {}", aside.display()))?;
    make(&suite, &mirror, &aside).with_context(|| {
        format!(
            "cannot make a Debian {suite} for the tests from {mirror}, one of this machine's apt sources; \
             this needs the network once"
        )
    })?;
    fs::write(aside.join(RECIPE), recipe)
        .and_then(|()| Ok(nix::unistd::syncfs(File::open(&aside)?)?))
        .and_then(|()| fs::rename(&aside, &place))
        .with_context(|| format!("cannot write {}", place.display()))
}

/// The name of this machine's Debian.
fn suite() -> Result<String> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.map(|name| name.trim_matches('"')).filter(|name| !name.is_empty());
    Ok(name.with_context(|| format!("{path} has no VERSION_CODENAME; the tests need a Debian"))?.to_owned())
}

/// Where this machine's apt gets the suite from.
fn mirror(suite: &str) -> Result<String> {
    let ask = || -> Result<Option<String>> {
        let said = command("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"])
            .arg(format!("Codename: {suite}"))
            .output()
            .context("cannot start apt-get; the tests need a Debian")?;
        Ok(usable(&String::from_utf8_lossy(&said.stdout)))
    };
    if let Some(mirror) = ask()? {
        return Ok(mirror);
    }
    // apt knows the names of its sources only when it has their lists.
    steps::run(command("apt-get").args(["--quiet", "update"]))?;
    ask()?.with_context(|| format!("apt has no source of {suite} main that debootstrap can read"))
}

/// The first URL of a kind that debootstrap reads, also from inside of what it makes.
fn usable(urls: &str) -> Option<String> {
    let read = |url: &&str| url.starts_with("http://") || url.starts_with("https://");
    urls.lines().find(read).map(str::to_owned)
}

fn make(suite: &str, mirror: &str, aside: &Path) -> Result<()> {
    let base = aside.join("base");
    steps::run(alone("debootstrap").args(["--variant=minbase", suite]).arg(&base).arg(mirror))?;
    let apt = |args: &[&str]| steps::run(alone("chroot").arg(&base).args(["apt-get", "--quiet"]).args(args));
    apt(&["clean"])?;
    apt(&["update"])?;
    let mut download = vec!["install", "--yes", "--no-install-recommends", "--download-only"];
    download.extend(INSTALLED);
    apt(&download)?;
    write_index(&base.join("var/cache/apt/archives"), &aside.join(PACKAGES))?;
    apt(&["clean"])?;
    let lists = base.join("var/lib/apt/lists");
    remove_tree(&lists)
        .and_then(|()| fs::create_dir(&lists))
        .with_context(|| format!("cannot empty {}", lists.display()))?;
    let left_out = LEFT_OUT.iter().map(|pattern| format!("--exclude={pattern}"));
    let mut tar = command("tar");
    // It is kept on this machine only: a fast compression is worth more than a good one.
    tar.args(["--create", "--use-compress-program=gzip -1", "--directory"]).arg(&base).args(left_out);
    steps::run(tar.arg("--file").arg(aside.join(BASE)).arg("."))?;
    remove_tree(&base).with_context(|| format!("cannot remove {}", base.display()))
}

/// A program with mounts and processes of its own, which all end with it, and it with us: a debootstrap that is killed
/// leaves neither.
fn alone(program: &str) -> Command {
    let mut alone = command("setpriv");
    alone
        .args(["--pdeathsig", "KILL", "unshare", "--mount-proc", "--pid", "--fork", "--kill-child", program])
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A Debian that a crash interrupts is made again, so the single files need not be flushed to the disk.
        .env("DPKG_FORCE", "unsafe-io")
        // It may not be there inside.
        .env_remove("TMPDIR");
    alone
}

/// Moves the packages of a folder to another one, and writes the `Packages` of a flat repository there: each package's
/// control file with three more fields (Debian's repository format).
fn write_index(from: &Path, to: &Path) -> Result<()> {
    let mut index = String::new();
    for package in packages(from).with_context(|| format!("cannot read {}", from.display()))? {
        let control =
            command("dpkg-deb").arg("--field").arg(&package).output().context("cannot start dpkg-deb")?;
        let control = String::from_utf8_lossy(&control.stdout);
        let name = control.lines().find_map(|line| line.strip_prefix("Package: "));
        let name = name.with_context(|| format!("{} is not a package", package.display()))?;
        // apt's own file names have escapes in them, which no server agrees on.
        let file = format!("{name}.deb");
        let bytes = fs::read(&package).with_context(|| format!("cannot read {}", package.display()))?;
        let (size, sum) = (bytes.len(), hex::encode(Sha256::digest(&bytes)));
        index.push_str(&format!(
            "{}\nFilename: ./{file}\nSize: {size}\nSHA256: {sum}\n\n",
            control.trim_end()
        ));
        fs::rename(&package, to.join(&file)).with_context(|| format!("cannot move {}", package.display()))?;
    }
    if index.is_empty() {
        bail!("apt downloaded none of {}", INSTALLED.join(", "));
    }
    let path = to.join("Packages");
    fs::write(&path, index).with_context(|| format!("cannot write {}", path.display()))
}

/// The packages in a folder, sorted.
fn packages(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_one_that_debootstrap_reads() {
        let urls = "mirror+file:/etc/apt/mirrors\nfile:/srv/debian\nhttp://deb.example/debian/\nhttps://b.example/\n";
        assert_eq!(usable(urls).as_deref(), Some("http://deb.example/debian/"));
        assert_eq!(usable("cdrom://disc/\n"), None);
    }
}
