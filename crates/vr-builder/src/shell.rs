//! A shell in the container of a build.

use std::path::PathBuf;

use vr_common::build_data::BuildData;
use vr_runner::container::{ExitStatus, Program, run_in_the_foreground};
use vr_runner::job::{Failed, Job};

use crate::build::prepare;
use crate::{BuildError, BuildOptions};

/// Opens a shell with everything in place as a build would have it, and gives how the shell ended. Nothing that is
/// done in it is kept. Inside, `/builder.sh /build/* /cache/buildpack_cache` does what a build does.
pub fn shell(data: &BuildData, options: &BuildOptions) -> Result<ExitStatus, Failed<BuildError>> {
    let mut job = Job::begin("vbuild", &options.job).map_err(Failed::early)?;
    let opened = open(&mut job, data, options);
    opened.map_err(|error| job.failed(error, None))
}

fn open(job: &mut Job, data: &BuildData, options: &BuildOptions) -> Result<ExitStatus, BuildError> {
    let prepared = prepare(job, data, options)?;
    let mut program = Program::new("/bin/bash", [] as [&str; 0]);
    program.candidates.push(PathBuf::from("/bin/sh"));
    if let Ok(terminal) = std::env::var("TERM") {
        program = program.env("TERM", terminal);
    }
    let mut spec = prepared.container(data, program);
    spec.limits = job.limits();
    job.say("/builder.sh /build/* /cache/buildpack_cache does what a build does");
    Ok(run_in_the_foreground(spec)?)
}
