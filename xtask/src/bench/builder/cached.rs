//! An app whose buildpack keeps a gigabyte in its cache, against the same app without.

use anyhow::{Context, Result, bail};
use vr_tests::Repository;

use super::repositories::{Kind, Repo};
use super::vbuild::{App, Builds, Built, Vbuild};

/// Fills the cache of an app that asks for it, and changes a file in it from then on.
const COMPILE: &str = r#"#!/bin/sh
set -e
test -e "$1/with-a-cache" || exit 0
cache=$2
if test -e "$cache/full"; then
    echo again >>"$cache/folder-1/small-aa"
    echo "-----> one file changed of $(cat "$cache/full")"
    exit
fi
split='split --suffix-length=2'
for number in $(seq 60); do
    mkdir "$cache/folder-$number"
    cd "$cache/folder-$number"
    head -c $((100 * 16384)) /dev/urandom | $split --bytes=16K - small-
    head -c $((33 * 262144)) /dev/urandom | $split --bytes=256K - middle-
done
head -c $((20 * 20971520)) /dev/urandom | (cd "$cache" && $split --bytes=20M - large-)
echo "$(find "$cache" -type f | wc -l) files" >"$cache/full"
"#;
/// How many that makes, and their size in bytes.
pub const FILES: u64 = 60 * (100 + 33) + 20;
pub const SIZE: u64 = 60 * (100 * 16_384 + 33 * 262_144) + 20 * 20_971_520;

/// What was measured.
#[derive(Debug)]
pub struct Cached {
    /// How often each was built.
    pub rounds: u32,
    /// Without anything in the cache.
    pub empty: Builds,
    /// With a gigabyte.
    pub full: Builds,
}

/// Builds both in turn.
pub fn measure(vbuild: &Vbuild<'_>, rounds: u32) -> Result<Cached> {
    eprintln!("filling a cache with {FILES} files");
    let folder = vbuild.world.path().join("cached");
    let buildpack = Repo::buildpack(&folder.join("buildpack"), COMPILE);
    let app = |name: &str, file: &str| -> Result<App> {
        let path = folder.join(name);
        Repository::new(&path).write(file, "An app of one file.\n");
        vbuild.app(name, &Repo::of_folder(Kind::Git, &path)?, &buildpack, None)
    };
    let (empty, full) = (app("empty_app", "without-a-cache")?, app("full_app", "with-a-cache")?);
    // The first build fills the cache, and the second is the first to change something in it.
    vbuild.build(&empty)?;
    vbuild.build(&full)?;
    found(&vbuild.build(&full)?)?;

    let mut cached = Cached { rounds, empty: Builds::default(), full: Builds::default() };
    for round in 0..rounds {
        eprintln!("building with and without a cache, round {} of {rounds}", round + 1);
        // Each comes after the other as often as before it.
        if round % 2 == 0 {
            cached.empty.push(&vbuild.build(&empty)?);
        }
        let built = vbuild.build(&full)?;
        found(&built)?;
        cached.full.push(&built);
        if round % 2 == 1 {
            cached.empty.push(&vbuild.build(&empty)?);
        }
    }
    Ok(cached)
}

/// A build that did not find its cache must not be taken for a fast one.
fn found(built: &Built) -> Result<()> {
    let line = built.said.lines().find(|line| line.contains("one file changed of"));
    let line = line.context("the buildpack did not find its cache again")?;
    if !line.contains(&format!("of {FILES} files")) {
        bail!("the cache is not whole: {line}, and not {FILES} files");
    }
    Ok(())
}
