//! Who may call: those who know the token, those who showed a certificate, and everybody where neither is asked for.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use vr_common::secret::Secret;

use super::refusal::refuse;
use crate::connection::ShownCertificate;
use crate::places::Caller;

/// What callers have to know or show.
#[derive(Debug)]
pub struct Access {
    token: RwLock<Option<Arc<Secret>>>,
}

/// One way in.
#[derive(Debug, Clone)]
pub struct Door {
    access: Arc<Access>,
    /// Whether no proof is needed while there is no token.
    is_open: bool,
}

impl Access {
    pub fn new(token: Option<Secret>) -> Self {
        Self { token: RwLock::new(token.map(Arc::new)) }
    }

    pub fn change(&self, token: Secret) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(token));
    }

    pub fn door(self: &Arc<Self>, is_open: bool) -> Door {
        Door { access: Arc::clone(self), is_open }
    }

    fn token(&self) -> Option<Arc<Secret>> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Lets a request pass or answers it.
pub async fn check(State(door): State<Door>, request: Request, next: Next) -> Response {
    if request.extensions().get::<ShownCertificate>().is_some() {
        return pass(request, next).await;
    }
    let Some(token) = door.access.token() else {
        return match door.is_open {
            true if is_from_a_page(request.headers()) => {
                refuse(StatusCode::FORBIDDEN, "web pages may not call; use a token")
            }
            true => pass(request, next).await,
            false => refuse(StatusCode::UNAUTHORIZED, "a client certificate is needed"),
        };
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_first_chunk::<7>())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token);
    if given.is_some_and(|given| token.is(given)) {
        return pass(request, next).await;
    }
    let text = match given {
        Some(_) => "the token is wrong",
        None => "a token is needed: Authorization: Bearer <token>",
    };
    let mut response = refuse(StatusCode::UNAUTHORIZED, text);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

async fn pass(request: Request, next: Next) -> Response {
    if let Some(caller) = request.extensions().get::<Caller>() {
        caller.keep_place();
    }
    next.run(request).await
}

/// Whether a browser sends this for a web page. It would for any page that somebody of this machine looks at.
fn is_from_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}
