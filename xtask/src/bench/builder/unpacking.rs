//! A large OS image unpacked, by a proc's setup as by a build: against `tar`.

use std::path::PathBuf;

use anyhow::Result;

use crate::bench::files::LARGE;
use crate::bench::stats::Samples;
use crate::bench::tar::{Tarball, unpack};
use crate::bench::world::World;

/// The files that are unpacked, and later packed.
#[derive(Debug)]
pub struct Large {
    /// Where they are.
    pub folder: PathBuf,
    /// How many.
    pub files: usize,
    /// Their size, in bytes.
    pub size: u64,
}

/// What was measured.
#[derive(Debug)]
pub struct Unpacking {
    /// Size of the tarball, in bytes.
    pub packed: u64,
    /// `tar xzf`.
    pub tar: Samples,
    /// The same until all of it is on the disk.
    pub tar_on_disk: Samples,
    /// `vrun setup` with the image's tarball there.
    pub setup: Samples,
    /// The same with the unpacked image there, too: what is not unpacking.
    pub again: Samples,
}

/// Unpacks in turn.
pub fn measure(world: &World, rounds: u32) -> Result<(Large, Unpacking)> {
    eprintln!("making an image of {} files", LARGE.files());
    let folder = world.path().join("large");
    let large = Large { size: LARGE.make(&folder)?, files: LARGE.files(), folder };
    let folders = [&*world.image_folder(), &large.folder];
    let image = Tarball::pack(&folders, world.path().join("large_image.tar.gz"))?.summed()?;
    let proc = world.proc_file(1, "/bin/true", world.build(), &image)?;
    let contents = world.root().join("images").join(image.name()).join("contents");
    let mut unpacking = Unpacking {
        packed: image.bytes()?,
        tar: Samples::default(),
        tar_on_disk: Samples::default(),
        setup: Samples::default(),
        again: Samples::default(),
    };
    // The first setup fetches the tarball.
    world.set_up(&proc)?;
    for round in 0..rounds {
        eprintln!("unpacking, round {} of {rounds}", round + 1);
        let mut by_tar = || -> Result<()> {
            let took = unpack(world, &image.path)?;
            unpacking.tar.push(took.ended);
            unpacking.tar_on_disk.push(took.on_disk);
            Ok(())
        };
        // Each comes after the other as often as before it.
        if round % 2 == 0 {
            by_tar()?;
        }
        world.set_aside(&contents)?;
        unpacking.setup.push(world.set_up(&proc)?);
        unpacking.again.push(world.set_up(&proc)?);
        if round % 2 == 1 {
            by_tar()?;
        }
    }
    Ok((large, unpacking))
}
