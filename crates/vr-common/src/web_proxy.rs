//! Which HTTP proxy leads to a server: the environment's (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`),
//! but none to this machine itself, which no proxy can reach.

use url::{Host, Url};

/// The proxy for a URL, if there is one.
pub(crate) fn for_url(url: &str) -> Option<ureq::Proxy> {
    if is_this_machine(url) { None } else { ureq::Proxy::try_from_env() }
}

fn is_this_machine(url: &str) -> bool {
    match Url::parse(url).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_leads_back_to_this_machine() {
        for url in ["http://127.0.0.1:8000/x", "http://localhost/", "https://[::1]:1/", "http://a.localhost"]
        {
            assert!(is_this_machine(url), "{url}");
        }
        for url in ["http://example.com", "http://10.0.0.1/", "http://localhost.example.com/", "nonsense"] {
            assert!(!is_this_machine(url), "{url}");
        }
    }
}
