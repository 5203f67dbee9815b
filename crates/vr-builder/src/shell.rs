//! A shell in the container of a build.

use std::path::PathBuf;

use vr_common::build_data::BuildData;
use vr_runner::container::{ExitStatus, Program, run_in_the_foreground};

use crate::build::{prepare, watch};
use crate::{BuildError, BuildOptions, Folders};
use vr_runner::job::Steps;

/// Opens a shell with everything in place as a build would have it, and gives how the shell ended. Nothing that is
/// done in it is kept. Inside, `/builder.sh /build/* /cache/buildpack_cache` does what a build does.
pub fn shell(data: &BuildData, options: &BuildOptions) -> Result<ExitStatus, BuildError> {
    let mut steps = Steps::new("vbuild", options.quiet);
    let interrupts = watch(options.die_with_parent)?;
    let folders = Folders::of(&options.root);
    let prepared = prepare(data, options, &folders, &interrupts, &mut steps)?;
    let mut program = Program::new("/bin/bash", [] as [&str; 0]);
    program.candidates.push(PathBuf::from("/bin/sh"));
    if let Ok(terminal) = std::env::var("TERM") {
        program = program.env("TERM", terminal);
    }
    let spec = prepared.workspace.container(
        data,
        &prepared.app_revision,
        &prepared.buildpacks,
        prepared.image.as_deref(),
        program,
    );
    steps.say("/builder.sh /build/* /cache/buildpack_cache does what a build does");
    Ok(run_in_the_foreground(spec)?)
}
