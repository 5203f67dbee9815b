//! Who may call: one user name and password, as in Supervisor's `[inet_http_server]`.

use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use thiserror::Error;
use vr_common::secret::{Secret, same_bytes};

/// What stands before a password of which only the SHA-1 sum is known.
const HASHED: &str = "{SHA}";

/// A user name and a password.
#[derive(Debug, Clone)]
pub struct Login {
    username: Secret,
    password: Password,
}

#[derive(Debug, Clone)]
enum Password {
    Plain(Secret),
    /// Its SHA-1 sum.
    Hashed([u8; 20]),
}

/// A sum that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected 40 hexadecimal digits after {HASHED}, as `printf %s PASSWORD | sha1sum` prints them")]
pub struct BadPassword;

impl Login {
    /// `password` is the password itself, or `{SHA}` and its SHA-1 sum in hexadecimal digits.
    ///
    /// # Errors
    /// [`BadPassword`].
    pub fn new(username: &str, password: &Secret) -> Result<Self, BadPassword> {
        let password = match password.expose().strip_prefix(HASHED) {
            None => Password::Plain(password.clone()),
            Some(digits) => Password::Hashed(sum_of(digits).ok_or(BadPassword)?),
        };
        Ok(Self { username: Secret::new(username), password })
    }

    /// Whether a request's `Authorization` header is `Basic` with this user name and password.
    pub(super) fn is_shown_by(&self, header: Option<&HeaderValue>) -> bool {
        let Some((scheme, pair)) = header.and_then(|value| value.as_bytes().split_first_chunk::<6>()) else {
            return false;
        };
        let Ok(pair) = STANDARD.decode(pair.trim_ascii()) else { return false };
        let Some(colon) = pair.iter().position(|byte| *byte == b':') else { return false };
        let right_user = self.username.is(&pair[..colon]);
        let right_password = self.password.is(&pair[colon + 1..]);
        scheme.eq_ignore_ascii_case(b"basic ") && right_user & right_password
    }
}

impl Password {
    fn is(&self, given: &[u8]) -> bool {
        match self {
            Self::Plain(password) => password.is(given),
            Self::Hashed(sum) => same_bytes(&Sha1::digest(given), sum),
        }
    }
}

fn sum_of(digits: &str) -> Option<[u8; 20]> {
    let digits = digits.as_bytes();
    let mut sum = [0; 20];
    if digits.len() != 2 * sum.len() {
        return None;
    }
    for (byte, pair) in sum.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(pair: &str) -> HeaderValue {
        HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).unwrap()
    }

    #[test]
    fn plain_and_hashed_passwords() {
        let sum = "{SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1d";
        let capitals = format!("{{SHA}}{}", sum[5..].to_uppercase());
        for password in ["thepassword", sum, &capitals] {
            let login = Login::new("me", &Secret::new(password)).unwrap();
            assert!(login.is_shown_by(Some(&basic("me:thepassword"))), "{password}");
            for wrong in ["me:Thepassword", "me:", "me", "", "you:thepassword", ":thepassword"] {
                assert!(!login.is_shown_by(Some(&basic(wrong))), "{wrong}");
            }
        }
        let login = Login::new("me", &Secret::new("a:b")).unwrap();
        assert!(login.is_shown_by(Some(&basic("me:a:b"))));
        assert!(!login.is_shown_by(None));
        for header in ["Basic", "Basic ", "Bearer bWU6YTpi", "Basic *", "Digest x"] {
            assert!(!login.is_shown_by(Some(&HeaderValue::from_static(header))), "{header}");
        }
    }

    #[test]
    fn sums_that_are_none() {
        for bad in ["{SHA}", "{SHA}82ab", "{SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1x"] {
            assert_eq!(Login::new("me", &Secret::new(bad)).unwrap_err(), BadPassword);
        }
    }
}
