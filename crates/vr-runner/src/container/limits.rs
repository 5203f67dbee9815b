//! How much of the host a container may use, as people write it down. Plain data: [`super::cgroup`] tells the kernel.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

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
            && both.bytes < memory.bytes
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
            (Some(memory), Some(both)) if memory.bytes != both.bytes => {
                format!("{memory}, {both} with swap")
            }
            (Some(memory), _) => memory.to_string(),
            (None, Some(both)) => format!("{both} with swap"),
            (None, None) => return None,
        };
        Some(format!("killed: out of memory (limit {limit})"))
    }
}

/// An amount of memory. Displayed as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    bytes: u64,
    text: String,
}

impl Size {
    /// How many bytes it is; at least 1.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not an amount of memory: expected bytes, or a number with K, M, G or T such as 256M")]
pub struct BadSize(String);

impl FromStr for Size {
    type Err = BadSize;

    /// `1048576`, `1024k`, `256M`, `1G`; a `B` after the unit changes nothing. A unit is 1024 of the one before.
    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.chars().take(60).collect());
        let lower = text.trim().to_ascii_lowercase();
        let amount = lower.strip_suffix('b').unwrap_or(&lower);
        let (number, shift) = match amount.as_bytes().last() {
            Some(b'k') => (&amount[..amount.len() - 1], 10),
            Some(b'm') => (&amount[..amount.len() - 1], 20),
            Some(b'g') => (&amount[..amount.len() - 1], 30),
            Some(b't') => (&amount[..amount.len() - 1], 40),
            _ => (amount, 0),
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = number.parse().map_err(|_| bad())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
        // The kernel counts in signed numbers.
        if bytes == 0 || i64::try_from(bytes).is_err() {
            return Err(bad());
        }
        Ok(Self { bytes, text: text.trim().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_like_the_kernel_reads_them() {
        for (text, bytes) in [
            ("1", 1),
            ("1048576", 1 << 20),
            ("1024k", 1 << 20),
            ("256M", 256 << 20),
            ("256m", 256 << 20),
            ("64MB", 64 << 20),
            (" 1G ", 1 << 30),
            ("2t", 2 << 40),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string()), (bytes, text.trim().to_owned()));
        }
        for text in
            ["", "M", "lots", "-1", "+1", "1.5G", "0", "0M", "1 G", "1MM", "9999999T", "18446744073709551616"]
        {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("256M"), "{error}");
        }
    }

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
