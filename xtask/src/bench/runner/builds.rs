//! How long it takes to set up procs of a large build, against unpacking it with `tar`.

use std::path::PathBuf;

use anyhow::Result;

use crate::bench::files::LARGE;
use crate::bench::stats::Samples;
use crate::bench::tar::{Tarball, unpack};
use crate::bench::world::World;

/// The ports of the procs of one build.
const PORTS: std::ops::RangeInclusive<u16> = 101..=110;

/// What was measured.
#[derive(Debug, Default)]
pub struct Builds {
    /// Size of the files, in bytes.
    pub size: u64,
    /// Size of the tarball, in bytes.
    pub packed: u64,
    /// `tar xzf`.
    pub tar: Samples,
    /// The same until all of it is on the disk.
    pub tar_on_disk: Samples,
    /// Setup with nothing there: the tarball is copied from where the URL says, checked and unpacked.
    pub first_with_copy: Samples,
    /// Setup with the tarball there.
    pub first: Samples,
    /// Setup of the second proc of the same build.
    pub second: Samples,
    /// Setup of the tenth proc of the same build.
    pub tenth: Samples,
}

impl Builds {
    fn unpack(&mut self, world: &World, tarball: &Tarball) -> Result<()> {
        let took = unpack(world, &tarball.path)?;
        self.tar.push(took.ended);
        self.tar_on_disk.push(took.on_disk);
        Ok(())
    }
}

/// Sets up and unpacks in turn.
pub fn measure(world: &World, rounds: u32) -> Result<Builds> {
    let files = world.path().join("large");
    eprintln!("making a build of {} files", LARGE.files());
    let mut builds = Builds { size: LARGE.make(&files)?, ..Builds::default() };
    let tarball = Tarball::pack(&[&files], world.path().join("large.tar.gz"))?.summed()?;
    world.set_aside(&files)?;
    builds.packed = tarball.bytes()?;
    let procs = PORTS
        .map(|port| world.proc_file(port, "/bin/true", &tarball, world.image()))
        .collect::<Result<Vec<PathBuf>>>()?;

    for round in 0..rounds {
        eprintln!("unpacking, round {} of {rounds}", round + 1);
        forget_procs(world)?;
        world.set_aside(&world.root().join("builds"))?;
        builds.first_with_copy.push(world.set_up(&procs[0])?);
        forget_procs(world)?;
        // Each comes after the other as often as before it.
        if round % 2 == 0 {
            builds.unpack(world, &tarball)?;
        }
        builds.first.push(world.set_up(&procs[0])?);
        for (index, file) in procs.iter().enumerate().skip(1) {
            let took = world.set_up(file)?;
            match index {
                1 => builds.second.push(took),
                9 => builds.tenth.push(took),
                _ => {}
            }
        }
        if round % 2 == 1 {
            forget_procs(world)?;
            builds.unpack(world, &tarball)?;
        }
    }
    forget_procs(world)?;
    Ok(builds)
}

/// Every proc, and what was unpacked for them; tarballs and the image stay.
fn forget_procs(world: &World) -> Result<()> {
    world.set_aside(&world.root().join("procs"))?;
    world.set_aside(&world.root().join("builds/unpacked"))
}
