//! The options that all jobs have.

use std::time::Duration;

use clap::Args;
use vr_common::proc_data::{CpuLimit, Network};

use super::JobOptions;
use crate::container::{Limits, Size};

/// The options that all jobs have.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// How long to wait for somebody else who uses the same files; without it, until they end
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lock_timeout: Option<Duration>,
    /// The memory that the container may use, such as 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// The processes and threads that the container may have [default: 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::MOST_PROCESSES)))]
    processes: Option<u32>,
    /// The processors that the container may use, such as 1.5
    #[arg(long, value_name = "N")]
    cpus: Option<CpuLimit>,
    /// What all files of the container may take on disk while it runs, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
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
    /// The same for a job, with how long its container may run.
    pub fn options(&self, timeout: Duration) -> JobOptions {
        JobOptions {
            timeout,
            lock_timeout: self.lock_timeout,
            limits: Limits {
                memory: self.memory.clone(),
                memory_and_swap: None,
                processes: self.processes,
                cpu_thousandths: self.cpus.map(|cpus| cpus.thousandths),
            },
            disk: self.disk,
            quiet: self.quiet,
            die_with_parent: self.die_with_parent,
        }
    }
}

/// An amount of bytes: `10G`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.parse::<Size>().map(|size| size.bytes()).map_err(|_| {
        format!("{text:?} is not an amount: expected bytes, or a number with K, M, G or T such as 10G, no less than 4K")
    })
}
