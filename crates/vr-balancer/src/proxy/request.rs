//! A request before it is known which pool it is for, and its answer on the way into the books.

use std::sync::Arc;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;

use super::access_log;
use super::body::AnswerBody;
use super::connection::Visit;
use super::exchange::Exchange;
use super::forward::forward;
use super::listener::Target;
use super::{headers, page};

/// Where certificate authorities look for their proofs, without TLS.
const ACME: &str = "/.well-known/acme-challenge/";

/// Answers a client's request.
pub(super) async fn answer(visit: &Visit, request: Request<Incoming>) -> Response<AnswerBody> {
    let log =
        visit.plane.access_log.as_ref().map(|log| {
            (Arc::clone(log), access_log::Request::new(visit.client.ip(), visit.is_tls(), &request))
        });
    let mut exchange = Exchange::begin(log);
    let mut response = respond(visit, request, &mut exchange).await;
    exchange.status(response.status().as_u16());
    response.body_mut().count(exchange);
    response
}

async fn respond(
    visit: &Visit,
    mut request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Response<AnswerBody> {
    if let Err(reason) = normalise(&mut request) {
        return page::page(StatusCode::BAD_REQUEST, "Bad request", reason);
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if let Some(port) = visit.front.redirect_to_https
        && !request.uri().path().starts_with(ACME)
        && let Some(location) = under_https(host, port, request.uri())
    {
        return page::redirect(location, request.method().is_safe());
    }
    let pool = match &visit.front.target {
        Target::Pool(pool) => Arc::clone(pool),
        Target::Routes => match visit.plane.router.find(host) {
            Some(pool) => pool,
            None => return page::unknown_host(),
        },
    };
    exchange.is_for(&pool);
    forward(visit, &pool, request, exchange).await
}

/// Brings the request into the form that nodes expect, or says what is wrong with it.
fn normalise(request: &mut Request<Incoming>) -> Result<(), &'static str> {
    if request.method() == Method::CONNECT {
        return Err("This is not a proxy that connects to other servers.");
    }
    if let Some(authority) = request.uri().authority() {
        // "GET http://host/path", and every request of HTTP/2: what the request line says outranks the header.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host).map_err(|_| "The host in the request line is malformed.")?;
        request.headers_mut().insert(HOST, host);
    }
    match request.headers().get_all(HOST).iter().count() {
        1 => {}
        0 if request.version() < Version::HTTP_11 => {}
        0 => return Err("The Host header is missing."),
        _ => return Err("There is more than one Host header."),
    }
    if request.version() == Version::HTTP_2 {
        headers::join_cookies(request.headers_mut());
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    Ok(())
}

/// The same place under https; none if the host cannot be written into an address.
fn under_https(host: &str, port: u16, uri: &Uri) -> Option<HeaderValue> {
    let authority = host.parse::<http::uri::Authority>().ok()?;
    let name = authority.host();
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = if path.starts_with('/') { path } else { "/" };
    HeaderValue::from_str(&format!("https://{name}{port}{path}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_under_https_has_the_host_without_its_port() {
        let location = |host: &str, port, uri: &str| {
            under_https(host, port, &uri.parse().unwrap()).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(location("a.org:80", 443, "/x?y=1").as_deref(), Some("https://a.org/x?y=1"));
        assert_eq!(location("[::1]:80", 8443, "/").as_deref(), Some("https://[::1]:8443/"));
        assert_eq!(location("a.org", 443, "*").as_deref(), Some("https://a.org/"));
        assert_eq!(location("", 443, "/"), None);
        assert_eq!(location("a b", 443, "/"), None);
    }
}
