//! Control groups of a container that LXC makes. LXC starts the program from `lxc-start`, in whose groups it begins, and
//! then hides all groups above those; so `lxc-start` is there just then, and neither before nor after.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::super::cgroup::Group;
use super::super::mounts::{Step, explain};

/// How many processes more there are while the program is being started: `lxc-start`, those that it starts for a moment,
/// and the shell that waits for us.
const FOR_THE_START: u32 = 8;
const PROCESSES: &str = "pids.max";

/// The groups of one container.
pub(super) struct Groups {
    /// By name and by the file that a process enters with.
    pub entries: Vec<(PathBuf, File)>,
    homes: Vec<PathBuf>,
}

impl Groups {
    /// None for a container without limits.
    pub fn of(group: Option<&mut Group>) -> Self {
        match group {
            Some(group) => Self { homes: group.homes().to_vec(), entries: group.take_entries() },
            None => Self { entries: Vec::new(), homes: Vec::new() },
        }
    }

    /// Lets `lxc-start` in, for the start.
    pub fn let_in(&self, lxc: Pid) -> Step<()> {
        self.add_to_the_limit(|limit| limit.saturating_add(FOR_THE_START))?;
        for (path, entry) in &self.entries {
            rustix::io::write(entry, number(lxc).as_bytes())
                .map_err(explain(format_args!("put LXC into the control group {}", path.display())))?;
        }
        Ok(())
    }

    /// Sends `lxc-start` to where it came from.
    pub fn send_home(&self, lxc: Pid) -> Step<()> {
        for home in &self.homes {
            fs::write(home, number(lxc)).map_err(explain(format_args!(
                "put LXC back into the control group of {}",
                home.display()
            )))?;
        }
        self.add_to_the_limit(|limit| limit.saturating_sub(FOR_THE_START))
    }

    fn add_to_the_limit(&self, change: impl Fn(u32) -> u32) -> Step<()> {
        for (path, _) in &self.entries {
            let file = path.join(PROCESSES);
            // Absent without that controller, and not a number without a limit.
            let Some(limit) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) else {
                continue;
            };
            write(&file, change(limit))?;
        }
        Ok(())
    }
}

fn write(file: &Path, value: u32) -> Step<()> {
    fs::write(file, value.to_string()).map_err(explain(format_args!("write the limit to {}", file.display())))
}

fn number(process: Pid) -> String {
    process.as_raw_nonzero().to_string()
}
