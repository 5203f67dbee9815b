//! The command line of `vimage`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use vr_common::image_data::ImageData;
use vr_common::log;
use vr_common::paths::VrRoot;
use vr_runner::job::{Failed, JobArgs, JobOptions, Steps, parse_size, report, size};

use crate::{Format, ImageOptions, ImageSummary, ImagerError, build, shell};

/// Makes an OS image: runs a script as root in a container over a base image, and packs the result.
#[derive(Debug, Parser)]
#[command(
    name = "vimage",
    version,
    after_help = "Examples:
  vimage build my_image.yaml
  vimage build my_image.yaml --output /srv/images --format zst
  vimage shell my_image.yaml

Exit codes: 0 done, 2 bad input, 4 the script failed, 5 a limit was hit, 1 other failures"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the image: leaves its tarball, its log and a YAML file with its md5 sum in the output folder
    Build {
        #[command(flatten)]
        common: Common,
        /// How long the script may run
        #[arg(long, value_name = "TIME", default_value = "2h", value_parser = humantime::parse_duration)]
        timeout: Duration,
        /// What the script's changes may take on disk, such as 10G
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        disk: Option<u64>,
        /// How long to wait for another run that writes the same files; without it, until it ends
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        lock_timeout: Option<Duration>,
        /// The folder for the three files, made when it is missing
        #[arg(long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// How the tarball is compressed
        #[arg(long, value_enum, default_value_t = FormatName::Gz)]
        format: FormatName,
        /// Print the result, or the failure, as one line of JSON at the end of standard output
        #[arg(long)]
        json: bool,
    },
    /// Open a shell in the container, with the script in its place
    Shell {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// The image.yaml
    file: PathBuf,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatName {
    Gz,
    Zst,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Gz => Self::Gzip,
            FormatName::Zst => Self::Zstd,
        }
    }
}

impl Common {
    fn load(&self) -> Result<ImageData, Failed<ImagerError>> {
        let mut data = ImageData::load(&self.file).map_err(Failed::early)?;
        data.network = self.job.network.unwrap_or(data.network);
        Ok(data)
    }

    fn options(&self, output: &Path, format: Format) -> ImageOptions {
        ImageOptions {
            root: VrRoot::from_env(),
            output: output.to_owned(),
            source: Some(self.file.clone()),
            format,
            job: self.job.options(),
        }
    }
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the arguments, carries them out, and says what came of it.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (Command::Build { common, .. } | Command::Shell { common }) = &arguments.command;
    let quiet = common.job.quiet;
    log::init_tool(&log::tool_default(quiet, 0));
    match &arguments.command {
        Command::Build { common, timeout, disk, lock_timeout, output, format, json } => {
            let mut options = common.options(output, (*format).into());
            options.job =
                JobOptions { timeout: *timeout, disk: *disk, lock_timeout: *lock_timeout, ..options.job };
            let result = common.load().and_then(|data| build(&data, &options));
            report("image", &result, *json, |summary| {
                if !quiet {
                    summarise(summary);
                }
            })
        }
        Command::Shell { common } => {
            let options = common.options(Path::new("."), Format::default());
            match common.load().and_then(|data| shell(&data, &options)) {
                Ok(status) => ExitCode::from(status.as_exit_code()),
                Err(failed) => report::<(), _>("image", &Err(failed), false, |()| {}),
            }
        }
    }
}

fn summarise(summary: &ImageSummary) {
    Steps::table(&summary.steps, summary.seconds);
    eprintln!(
        "vimage: {} is made: {} ({}, {} entries, {} unpacked, md5 {})",
        summary.image_name,
        summary.tarball.display(),
        size(summary.bytes),
        summary.entries,
        size(summary.unpacked_bytes),
        summary.image_md5,
    );
}
