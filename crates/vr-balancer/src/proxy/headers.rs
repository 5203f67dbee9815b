//! What a proxy must take out of, and put into, the heads that pass through it.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};

/// Headers that are about one connection, beside those that `Connection` names.
/// `Trailer` is not among them: it announces what the end of the body holds, and the body passes through.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

fn list_items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let items = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    items.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// The protocol that a head asks, or agrees, to change to.
///
/// HTTP/2 without TLS is not passed on: it would let a client speak to the node past this proxy.
pub(super) fn upgrade_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = list_items(headers, CONNECTION).any(|item| item.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| asked)?;
    (!list_items(headers, UPGRADE).any(|item| item.eq_ignore_ascii_case("h2c"))).then(|| protocol.clone())
}

/// Takes out everything that is about the connection the message came in on.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        // The one that does not count; passing it on is how requests are smuggled.
        headers.remove(CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> =
        list_items(headers, CONNECTION).filter_map(|item| item.parse().ok()).collect();
    for name in named {
        // A message cannot do without these, whatever its sender calls them.
        if name != HOST && name != CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn drop_where(headers: &mut HeaderMap, is_bad: impl Fn(&str) -> bool) {
    let bad: Vec<HeaderName> = headers.keys().filter(|name| is_bad(name.as_str())).cloned().collect();
    for name in bad {
        headers.remove(name);
    }
}

/// Takes out headers that many programs cannot tell from others: `X_Forwarded_For` and `X-Forwarded-For` are both
/// `HTTP_X_FORWARDED_FOR` to CGI and WSGI.
fn drop_ambiguous(headers: &mut HeaderMap) {
    drop_where(headers, |name| name.contains('_'));
}

/// Takes out what only a proxy can know.
fn drop_claims(headers: &mut HeaderMap) {
    drop_where(headers, |name| name.starts_with("x-forwarded-") || name == "x-real-ip");
    headers.remove(FORWARDED);
}

/// Makes a client's head ready for a node. What the client says about those before it is kept only if it is
/// `believed`.
pub(super) fn prepare_request(
    headers: &mut HeaderMap,
    client: IpAddr,
    scheme: &'static str,
    believed: bool,
    upgrade: Option<&HeaderValue>,
) {
    let wants_trailers = list_items(headers, TE).any(|item| item.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers);
    headers.remove(HTTP2_SETTINGS);
    // The client has been told to go on by this proxy, as soon as the body is asked for.
    headers.remove(EXPECT);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if wants_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }

    drop_ambiguous(headers);
    if !believed {
        drop_claims(headers);
    }
    let client = client.to_canonical();
    append(headers, X_FORWARDED_FOR, &client.to_string());
    if let Some(host) = headers.get(HOST).cloned()
        && !headers.contains_key(X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    // Only where a proxy in front began it: a second story beside X-Forwarded-For would be one too many.
    if headers.contains_key(FORWARDED) {
        let element = match client {
            IpAddr::V4(ip) => format!("for={ip};proto={scheme}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto={scheme}"),
        };
        append(headers, FORWARDED, &element);
    }
}

/// Joins what HTTP/2 may take apart and HTTP/1.1 may not (RFC 9113, 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Makes a head that is ready for HTTP/1.1 ready for HTTP/2, which knows nothing of connections and says where a body
/// ends in its own way.
pub(super) fn prepare_for_http2(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, HOST] {
        headers.remove(name);
    }
}

/// Makes a node's head ready for the client.
pub(super) fn prepare_answer(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    strip_hop_by_hop(headers);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
}

/// Adds an item to a comma-separated list, which is one header line afterwards.
fn append(headers: &mut HeaderMap, name: HeaderName, item: &str) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(item.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            })
    }

    fn sorted(headers: &HeaderMap) -> Vec<(&str, &str)> {
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        lines.sort_unstable();
        lines
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let mut headers = map(&[
            ("host", "example.com"),
            ("connection", "close, x-secret"),
            ("connection", "Keep-Alive"),
            ("keep-alive", "timeout=5"),
            ("x-secret", "1"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "gzip, trailers"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ]);
        prepare_request(&mut headers, CLIENT, "http", false, None);
        assert_eq!(
            sorted(&headers),
            [
                ("accept", "*/*"),
                ("connection", "te"),
                ("host", "example.com"),
                ("te", "trailers"),
                ("trailer", "x-sum"),
                ("x-forwarded-for", "192.0.2.7"),
                ("x-forwarded-host", "example.com"),
                ("x-forwarded-proto", "http"),
            ]
        );
    }

    #[test]
    fn a_client_cannot_take_out_what_the_proxy_or_the_message_needs() {
        let mut headers = map(&[
            ("host", "example.com"),
            ("content-length", "5"),
            ("connection", "host, content-length, x-forwarded-for, x-forwarded-proto"),
            ("x-forwarded-for", "10.0.0.1"),
        ]);
        prepare_request(&mut headers, CLIENT, "http", false, None);
        assert_eq!(headers[HOST], "example.com");
        assert_eq!(headers[CONTENT_LENGTH], "5");
        assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
        assert_eq!(headers[X_FORWARDED_PROTO], "http");
    }

    #[test]
    fn a_second_length_is_not_passed_on() {
        let mut headers = map(&[("content-length", "5"), ("transfer-encoding", "chunked")]);
        prepare_answer(&mut headers, None);
        assert!(headers.is_empty());
    }

    #[test]
    fn earlier_proxies_are_kept_in_order_where_they_are_believed() {
        let mut headers = map(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2, 10.0.0.3"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outside.example"),
            ("forwarded", "for=10.0.0.1;proto=https"),
            ("host", "inside.example"),
        ]);
        prepare_request(&mut headers, "::ffff:192.0.2.7".parse().unwrap(), "http", true, None);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.7");
        assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().count(), 1);
        assert_eq!(headers[X_FORWARDED_PROTO], "https");
        assert_eq!(headers[X_FORWARDED_HOST], "outside.example");
        assert_eq!(headers[FORWARDED], "for=10.0.0.1;proto=https, for=192.0.2.7;proto=http");
    }

    #[test]
    fn what_anybody_claims_about_earlier_proxies_is_replaced() {
        let mut headers = map(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-port", "1"),
            ("x-real-ip", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1;proto=https"),
            ("x_forwarded_for", "10.0.0.1"),
            ("host", "inside.example"),
        ]);
        prepare_request(&mut headers, CLIENT, "http", false, None);
        assert_eq!(
            sorted(&headers),
            [
                ("host", "inside.example"),
                ("x-forwarded-for", "192.0.2.7"),
                ("x-forwarded-host", "inside.example"),
                ("x-forwarded-proto", "http"),
            ]
        );
    }

    #[test]
    fn names_with_an_underscore_are_dropped_whoever_sends_them() {
        let mut headers = map(&[("x_forwarded_for", "10.0.0.1"), ("content_length", "5"), ("x-ok", "1")]);
        prepare_request(&mut headers, CLIENT, "http", true, None);
        assert_eq!(
            sorted(&headers),
            [("x-forwarded-for", "192.0.2.7"), ("x-forwarded-proto", "http"), ("x-ok", "1")]
        );
    }

    #[test]
    fn websockets_pass_and_http2_does_not() {
        let mut headers = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let protocol = upgrade_protocol(&headers).unwrap();
        assert_eq!(protocol, "websocket");
        prepare_request(&mut headers, CLIENT, "http", false, Some(&protocol));
        assert_eq!((&headers[CONNECTION], &headers[UPGRADE]), (&"upgrade".parse().unwrap(), &protocol));
        assert!(upgrade_protocol(&map(&[("upgrade", "websocket")])).is_none());
        let h2c =
            map(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "x")]);
        assert!(upgrade_protocol(&h2c).is_none());
    }
}
