//! Manual pages and shell completions of all programs, made from the same arguments that their parsers use.
//!
//! This crate knows every program's arguments and nothing of what they do. No program depends on it.

mod completions;
mod manual;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use thiserror::Error;
use vr_runner::proc::Variant;

/// A program that people install.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What its file is called.
    pub name: &'static str,
    /// Its arguments.
    pub command: fn() -> Command,
}

/// All of them.
pub const PROGRAMS: [Program; 9] = [
    Program { name: "vrun", command: || vr_runner::cli::command("vrun", Variant::AsTheFileSays) },
    Program {
        name: "vrun_precise",
        command: || vr_runner::cli::command("vrun_precise", Variant::HostFolders),
    },
    Program { name: "vbuild", command: vr_builder::cli::command },
    Program { name: "vimage", command: vr_imager::cli::command },
    Program { name: "vr-agent", command: vr_agent::cli::command },
    Program { name: "proc_publisher", command: vr_agent::publisher::cli::command },
    Program { name: "vr-balancer", command: vr_balancer::cli::command },
    Program { name: "vr-server", command: vr_server::cli::command },
    Program { name: "vr-cli", command: vr_cli::args::command },
];

/// A page or a completion that cannot be written.
#[derive(Debug, Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    /// The file or folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Writes everything below `out`, in the folders where a prefix such as `/usr/local` has it. Gives the files' paths
/// below `out`, sorted.
pub fn write(out: &Path) -> Result<Vec<PathBuf>, WriteError> {
    let mut files = Vec::new();
    for program in &PROGRAMS {
        files.extend(manual::pages(program));
        files.extend(completions::scripts(program));
    }
    files.sort();
    for (name, content) in &files {
        let path = out.join(name);
        let folder = path.parent().unwrap_or(out);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, content))
            .map_err(|source| WriteError { path: path.clone(), source })?;
    }
    Ok(files.into_iter().map(|(name, _)| name).collect())
}
