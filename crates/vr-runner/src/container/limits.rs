//! How much of the host a container may use, as people write it down. Plain data: [`super::cgroup`] tells the kernel.

pub use vr_common::memory::{BadSize, Size};

/// What a container may use at most. Nothing is limited by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Memory without swap; [`Self::memory_and_swap`] when that alone is given.
    pub memory: Option<Size>,
    /// Memory and swap together; not less than [`Self::memory`].
    pub memory_and_swap: Option<Size>,
    /// Processes and threads, the container's init not counted; from 1 to [`Self::MOST_PROCESSES`].
    pub processes: Option<u32>,
    /// Processor time, in thousandths of a processor; from [`Self::LEAST_CPU`].
    pub cpu_thousandths: Option<u32>,
}

impl Limits {
    /// The kernel takes no larger limit of processes, and init is one of them.
    pub const MOST_PROCESSES: u32 = (1 << 22) - 1;
    /// The kernel hands out no smaller share of a processor, in thousandths.
    pub const LEAST_CPU: u32 = 10;

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first thing that is wrong with them.
    pub(super) fn problem(&self) -> Option<String> {
        if let (Some(memory), Some(both)) = (&self.memory, &self.memory_and_swap)
            && both.bytes() < memory.bytes()
        {
            return Some(format!(
                "memory with swap ({both}) is limited to less than memory alone ({memory})"
            ));
        }
        if self.processes.is_some_and(|most| most == 0 || most > Self::MOST_PROCESSES) {
            return Some(format!("the limit of processes is not from 1 to {}", Self::MOST_PROCESSES));
        }
        if self.cpu_thousandths.is_some_and(|share| share < Self::LEAST_CPU) {
            return Some("the limit of processor time is less than 0.01".to_owned());
        }
        None
    }

    /// What is said of a container that the memory limit ended.
    pub(super) fn out_of_memory(&self) -> Option<String> {
        let limit = match (&self.memory, &self.memory_and_swap) {
            (Some(memory), Some(both)) if memory.bytes() != both.bytes() => {
                format!("{memory}, {both} with swap")
            }
            (Some(memory), _) => memory.to_string(),
            (None, Some(both)) => format!("{both} with swap"),
            (None, None) => return None,
        };
        Some(format!("killed: out of memory (limit {limit})"))
    }

    /// What is said of a container in which the limit of processes was hit.
    pub(super) fn out_of_processes(&self) -> Option<String> {
        self.processes.map(|most| format!("out of processes (limit {most})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_contradict_themselves_are_named() {
        let size = |text: &str| Some(text.parse().unwrap());
        let fine = Limits { memory: size("1M"), memory_and_swap: size("1024K"), ..Limits::default() };
        assert_eq!(fine.problem(), None);
        let less = Limits { memory: size("2M"), ..fine };
        assert!(less.problem().unwrap().contains("(1024K)"));
        for processes in [0, Limits::MOST_PROCESSES + 1] {
            assert!(Limits { processes: Some(processes), ..Limits::default() }.problem().is_some());
        }
        assert!(Limits { cpu_thousandths: Some(9), ..Limits::default() }.problem().is_some());
    }

    #[test]
    fn the_end_of_memory_names_the_limit() {
        let size = |text: &str| Some(text.parse().unwrap());
        let words = |memory, memory_and_swap| {
            Limits { memory, memory_and_swap, ..Limits::default() }.out_of_memory().unwrap_or_default()
        };
        assert_eq!(words(size("64M"), None), "killed: out of memory (limit 64M)");
        assert_eq!(words(size("64M"), size("65536k")), "killed: out of memory (limit 64M)");
        assert_eq!(words(size("64M"), size("1G")), "killed: out of memory (limit 64M, 1G with swap)");
        assert_eq!(words(None, size("1G")), "killed: out of memory (limit 1G with swap)");
        assert_eq!(words(None, None), "");
    }
}
