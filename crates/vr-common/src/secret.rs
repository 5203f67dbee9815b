//! Text that must never reach a log, an event or an error message.

use std::fmt;

use serde::Deserialize;

/// A password or token. `Debug` and `Display` print `***`; [`Secret::expose`] is the only way to the text.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that has to send or compare it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is the secret. How long the answer takes says nothing of how much of it was right.
    pub fn is(&self, given: &[u8]) -> bool {
        same_bytes(given, self.0.as_bytes())
    }

    /// 160 random bits as 40 hexadecimal digits.
    pub fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 20]>()))
    }
}

/// Compares without telling by the time it takes how much of `given` was right.
pub fn same_bytes(given: &[u8], expected: &[u8]) -> bool {
    let mut difference = given.len() ^ expected.len();
    for (at, byte) in expected.iter().enumerate() {
        let other = given.get(at).copied().unwrap_or(0);
        difference |= usize::from(std::hint::black_box(byte ^ other));
    }
    std::hint::black_box(difference) == 0
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn only_the_whole_secret_is_the_secret() {
        assert!(Secret::new("secret").is(b"secret"));
        for wrong in [&b"secre"[..], b"secrets", b"", b"Secret", b"secret\0"] {
            assert!(!Secret::new("secret").is(wrong), "{wrong:?}");
        }
        assert!(!Secret::new("").is(b"\0\0"));
    }

    #[test]
    fn random_secrets_differ_and_are_long() {
        let (a, b) = (Secret::random(), Secret::random());
        assert_ne!(a.expose(), b.expose());
        assert_eq!(a.expose().len(), 40);
    }
}
