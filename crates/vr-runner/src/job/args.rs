//! The options that all jobs have, and a shell in the container of one, too.

use clap::Args;
use vr_common::proc_data::{CpuLimit, Network};

use super::JobOptions;
use crate::container::{Limits, Size};

/// The options that all jobs have, and a shell in the container of one, too.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The memory that the container may use, such as 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// The processes and threads that the container may have [default: 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::MOST_PROCESSES)))]
    processes: Option<u32>,
    /// The processors that the container may use, such as 1.5
    #[arg(long, value_name = "N")]
    cpus: Option<CpuLimit>,
    /// The network that the container sees, whatever the file says: the host's, or nothing but a loopback interface
    #[arg(long, value_name = "host|none")]
    pub network: Option<Network>,
    /// Say nothing but errors, and show no output
    #[arg(short, long)]
    pub quiet: bool,
    /// Stop when the program that started this one ends
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

impl JobArgs {
    /// The same for a job. What its container may do with time and disk, and how long it waits, is not among them.
    pub fn options(&self) -> JobOptions {
        JobOptions {
            limits: Limits {
                memory: self.memory.clone(),
                memory_and_swap: None,
                processes: self.processes,
                cpu_thousandths: self.cpus.map(|cpus| cpus.thousandths),
            },
            quiet: self.quiet,
            die_with_parent: self.die_with_parent,
            ..JobOptions::default()
        }
    }
}

/// An amount of bytes: `10G`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.parse::<Size>().map(|size| size.bytes()).map_err(|_| {
        format!("{text:?} is not an amount: expected bytes, or a number with K, M, G or T such as 10G, no less than 4K")
    })
}
