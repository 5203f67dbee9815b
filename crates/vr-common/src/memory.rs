//! Amounts of memory as people write them down. Must not know how they are kept.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An amount of memory. Displayed as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    bytes: u64,
    text: String,
}

impl Size {
    /// One page: the kernel takes any less for nothing at all.
    pub const LEAST: u64 = 4096;

    /// How many bytes it is; at least [`Self::LEAST`].
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
#[error(
    "{0:?} is not an amount of memory: expected bytes, or a number with K, M, G or T such as 256M, no less than 4K"
)]
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
        if bytes < Self::LEAST || i64::try_from(bytes).is_err() {
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
            ("4096", 4096),
            ("4k", 4096),
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
        for text in [
            "",
            "M",
            "lots",
            "-1",
            "+1",
            "1.5G",
            "0",
            "0M",
            "1",
            "256",
            "4095",
            "3k",
            "1 G",
            "1MM",
            "9999999T",
            "18446744073709551616",
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("256M"), "{error}");
        }
    }
}
