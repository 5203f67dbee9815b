//! Keeps web pages from an address that asks for no proof: a browser on this machine would fetch it for them.
//!
//! A page of another site shows itself by `Origin`. One whose own name was made to lead to this machine (DNS rebinding) is
//! of the same site for its browser, which sends no `Origin` when it reads, but that name as `Host`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use vr_common::host_api::ErrorBody;

use crate::files;

/// The same service, for those who call this machine by its address or one of its own names: `localhost`, `host_name`, and
/// the kernel's.
pub fn only_for(router: Router, host_name: &str) -> Router {
    let kernels = files::read_text(Path::new("/proc/sys/kernel/hostname"), 256).unwrap_or_default();
    let names: Arc<[String]> = [host_name, kernels.trim()].map(str::to_owned).into();
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let names = Arc::clone(&names);
        async move {
            match request.headers().get(header::HOST) {
                Some(host) if !host.to_str().is_ok_and(|host| is_own(host, &names)) => refuse(),
                // Browsers always send it.
                _ => next.run(request).await,
            }
        }
    }))
}

fn is_own(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches([']', '.']);
    let is_address = host.parse::<IpAddr>().is_ok();
    is_address
        || host.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| !name.is_empty() && host.eq_ignore_ascii_case(name))
}

fn refuse() -> Response {
    let error =
        "the request is for another host: expected an address of this one, its name, or localhost".to_owned();
    (StatusCode::FORBIDDEN, Json(ErrorBody { error, log_tail: None })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_own_names_are_told_from_others() {
        let names = ["web1.example.com".to_owned(), String::new()];
        for own in [
            "127.0.0.1:9002",
            "127.0.0.1",
            "[::1]:9002",
            "localhost:1",
            "LocalHost.",
            "Web1.example.com:9002",
        ] {
            assert!(is_own(own, &names), "{own}");
        }
        let others = [
            "evil.example",
            "evil.example:9002",
            "localhost.evil.example",
            "web1.example.com@evil.example",
            "",
            " ",
        ];
        for other in others {
            assert!(!is_own(other, &names), "{other}");
        }
    }
}
