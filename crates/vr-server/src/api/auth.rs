//! Who asks: HTTP basic auth against the users of the store.
//!
//! A password is checked with argon2 once; for some minutes after, a keyed hash of what was sent is enough, so that
//! not each request pays for argon2. The hash covers the stored password hash too: a changed password counts at once.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use vr_common::secret::Secret;

use super::Api;
use super::error::Failure;
use crate::store::{Store, StoreError};

/// How long a checked password is remembered.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// How long a wrong password is held against its sender.
const HELD_AGAINST: Duration = Duration::from_secs(5 * 60);
/// How many wrong passwords cost nothing but argon2.
const FREE_FAILURES: u32 = 3;
/// The first delay after those; each further failure doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(4);
/// How many senders are kept in mind.
const MOST_SENDERS: usize = 10_000;
/// The longest `Authorization` header that is looked at, in bytes.
const LONGEST_HEADER: usize = 4096;
/// How many passwords are checked at once: each check takes 19 MiB and a CPU.
const CHECKS_AT_ONCE: usize = 2;

/// The user who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User(pub String);

type Sender = (String, Option<IpAddr>);

#[derive(Debug)]
struct Memory {
    good: Mutex<HashMap<[u8; 32], Instant>>,
    bad: Mutex<HashMap<Sender, (u32, Instant)>>,
}

/// The check of users and passwords. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Auth {
    store: Store,
    key: [u8; 32],
    memory: Arc<Memory>,
    checks: Arc<Semaphore>,
    unknown: Arc<tokio::sync::OnceCell<String>>,
}

/// The argon2id hash of a password, as it is stored.
pub async fn hash_password(password: &Secret) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let password = password.clone();
    let hash = tokio::task::spawn_blocking(move || {
        let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>())?;
        Argon2::default().hash_password(password.expose().as_bytes(), &salt).map(|hash| hash.to_string())
    });
    hash.await?.map_err(|e| e.to_string().into())
}

impl Auth {
    /// Checks against the users of `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            key: rand::random(),
            memory: Arc::new(Memory { good: Mutex::default(), bad: Mutex::default() }),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            unknown: Arc::default(),
        }
    }

    /// The user of these credentials; none when they are wrong.
    async fn check(
        &self,
        username: &str,
        password: &Secret,
        from: Option<IpAddr>,
    ) -> Result<Option<User>, Box<dyn std::error::Error + Send + Sync>> {
        let stored = self.store.password_hash(username).await?;
        let user = || Some(User(username.to_owned()));
        let digest = stored.as_deref().map(|stored| self.digest(username, password, stored));
        if let Some(digest) = &digest
            && self.remembers(digest)
        {
            return Ok(user());
        }
        let sender = (username.to_owned(), from);
        tokio::time::sleep(self.delay(&sender)).await;
        // An unknown user costs what a known one costs, or the time would tell them apart.
        let against = match &stored {
            Some(stored) => stored.clone(),
            None => self.unknown.get_or_try_init(|| hash_password(&NOBODY)).await?.clone(),
        };
        let _turn = self.checks.acquire().await?;
        let password = password.clone();
        let right = tokio::task::spawn_blocking(move || {
            let hash = PasswordHash::new(&against).map_err(|e| e.to_string())?;
            Ok::<_, String>(Argon2::default().verify_password(password.expose().as_bytes(), &hash).is_ok())
        });
        let right = right.await??;
        match digest.filter(|_| right) {
            Some(digest) => {
                self.remember(digest);
                Ok(user())
            }
            None => {
                self.hold_against(sender);
                Ok(None)
            }
        }
    }

    fn digest(&self, username: &str, password: &Secret, stored: &str) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(self.key);
        for part in [username, password.expose(), stored] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn remembers(&self, digest: &[u8; 32]) -> bool {
        let good = self.memory.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(digest).is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    fn remember(&self, digest: [u8; 32]) {
        let mut good = self.memory.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.retain(|_, since| since.elapsed() < REMEMBERED);
        good.insert(digest, Instant::now());
    }

    fn delay(&self, sender: &Sender) -> Duration {
        let bad = self.memory.bad.lock().unwrap_or_else(PoisonError::into_inner);
        match bad.get(sender) {
            Some((failures, last)) if last.elapsed() < HELD_AGAINST => delay_after(*failures),
            _ => Duration::ZERO,
        }
    }

    fn hold_against(&self, sender: Sender) {
        let mut bad = self.memory.bad.lock().unwrap_or_else(PoisonError::into_inner);
        if bad.len() >= MOST_SENDERS {
            bad.retain(|_, (_, last)| last.elapsed() < HELD_AGAINST);
        }
        if bad.len() >= MOST_SENDERS {
            bad.clear();
        }
        let (failures, last) = bad.entry(sender).or_insert((0, Instant::now()));
        *failures = if last.elapsed() < HELD_AGAINST { failures.saturating_add(1) } else { 1 };
        *last = Instant::now();
    }
}

/// What passwords of unknown users are compared with.
static NOBODY: std::sync::LazyLock<Secret> = std::sync::LazyLock::new(Secret::random);

fn delay_after(failures: u32) -> Duration {
    match failures.checked_sub(FREE_FAILURES) {
        None => Duration::ZERO,
        Some(more) => FIRST_DELAY.saturating_mul(1 << more.min(10)).min(LONGEST_DELAY),
    }
}

/// The name and password of an `Authorization: Basic …` header.
fn credentials(headers: &HeaderMap) -> Option<(String, Secret)> {
    let text =
        headers.get(header::AUTHORIZATION)?.to_str().ok().filter(|text| text.len() <= LONGEST_HEADER)?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), Secret::new(password)))
}

/// Lets a request through with its [`User`], or answers 401.
pub(super) async fn require(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let Some((username, password)) = credentials(request.headers()) else {
        return Failure::unauthorized().into_response();
    };
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    match api.auth.check(&username, &password, from).await {
        Ok(Some(user)) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Ok(None) => {
            tracing::warn!(username, ?from, "wrong user or password");
            Failure::unauthorized().into_response()
        }
        Err(error) => match error.downcast::<StoreError>() {
            Ok(error) => Failure::from(*error).into_response(),
            Err(error) => Failure::internal(&*error).into_response(),
        },
    }
}

/// Refuses a write that a page of another site made the browser send: browsers send basic auth by themselves.
pub(super) async fn same_site(request: Request, next: Next) -> Response {
    if !request.method().is_safe() && is_foreign(request.headers()) {
        let message = "a page of another site may not change anything here";
        return Failure::new(http::StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if text(header::HeaderName::from_static("sec-fetch-site"))
        .is_some_and(|site| !matches!(site, "same-origin" | "none"))
    {
        return true;
    }
    text(header::ORIGIN).is_some_and(|origin| {
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_none() || host != text(header::HOST)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_begin_after_some_failures_and_have_an_end() {
        let milliseconds: Vec<_> = (0..9).map(|failures| delay_after(failures).as_millis()).collect();
        assert_eq!(milliseconds, [0, 0, 0, 250, 500, 1000, 2000, 4000, 4000]);
        assert_eq!(delay_after(u32::MAX), LONGEST_DELAY);
    }

    #[tokio::test]
    async fn wrong_passwords_are_held_against_who_sent_them() {
        let dir = tempfile::tempdir().unwrap();
        let auth = Auth::new(Store::open(&dir.path().join("store.db")).await.unwrap());
        let sender = |user: &str, last: u8| (user.to_owned(), Some(IpAddr::from([127, 0, 0, last])));
        for _ in 0..FREE_FAILURES {
            assert_eq!(auth.delay(&sender("admin", 1)), Duration::ZERO);
            assert_eq!(auth.check("admin", &Secret::new("x"), sender("admin", 1).1).await.unwrap(), None);
        }
        assert_eq!(auth.delay(&sender("admin", 1)), FIRST_DELAY);
        for other in [sender("admin", 2), sender("other", 1), ("admin".to_owned(), None)] {
            assert_eq!(auth.delay(&other), Duration::ZERO, "{other:?}");
        }
    }

    #[test]
    fn credentials_are_read_as_they_are_sent() {
        let read = |header: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, header.parse().unwrap())]);
            credentials(&headers).map(|(username, password)| (username, password.expose().to_owned()))
        };
        let encoded = STANDARD.encode("ann:a:b c");
        let expected = Some(("ann".to_owned(), "a:b c".to_owned()));
        assert_eq!(read(&format!("Basic {encoded}")), expected);
        assert_eq!(read(&format!("basic  {encoded} ")), expected);
        for bad in ["", "Basic", "Basic !", "Basic YQ==", &format!("Bearer {encoded}"), "Basic /////w=="] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(read(&format!("Basic {}", STANDARD.encode("a:".to_owned() + &"b".repeat(4000)))), None);
    }
}
