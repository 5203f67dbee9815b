//! Which host's requests go to which pool.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use vr_common::names::PoolName;

use super::options::HostPattern;
use super::pool::Pool;

/// The routes, for requests to look at while they are changed.
#[derive(Default)]
pub(super) struct Router {
    table: ArcSwap<Table>,
    unrouted: AtomicU64,
}

#[derive(Default)]
struct Table {
    exact: HashMap<String, Arc<Pool>>,
    /// Without the star: `.example.org`.
    suffixes: HashMap<String, Arc<Pool>>,
    default: Option<Arc<Pool>>,
}

impl Router {
    /// Makes these the routes for the very next request. Pools that are not there are left out.
    pub(super) fn replace(
        &self,
        routes: &BTreeMap<HostPattern, PoolName>,
        find: impl Fn(&PoolName) -> Option<Arc<Pool>>,
    ) {
        let mut table = Table::default();
        for (pattern, pool) in routes.iter().filter_map(|(pattern, name)| Some((pattern, find(name)?))) {
            match pattern.as_str().strip_prefix('*') {
                None => drop(table.exact.insert(pattern.to_string(), pool)),
                Some("") => table.default = Some(pool),
                Some(suffix) => drop(table.suffixes.insert(suffix.to_owned(), pool)),
            }
        }
        self.table.store(Arc::new(table));
    }

    /// The pool for a `Host` header: that of the host itself, else that of the longest suffix, else that of all others.
    pub(super) fn find(&self, host: &str) -> Option<Arc<Pool>> {
        let table = self.table.load();
        let host = normalise(host);
        if let Some(pool) = table.exact.get(host.as_ref()) {
            return Some(Arc::clone(pool));
        }
        let mut suffixes = host.match_indices('.').map(|(at, _)| &host[at..]);
        // A suffix stands for what is below it, so there has to be something before the dot.
        let found = if table.suffixes.is_empty() || host.starts_with('.') {
            None
        } else {
            suffixes.find_map(|suffix| table.suffixes.get(suffix))
        };
        let found = found.or(table.default.as_ref()).map(Arc::clone);
        if found.is_none() {
            self.unrouted.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// How often there was no pool.
    pub(super) fn unrouted(&self) -> u64 {
        self.unrouted.load(Ordering::Relaxed)
    }
}

/// A host without its port and the dot of its root, in lower case.
fn normalise(host: &str) -> Cow<'_, str> {
    let name = match host.rsplit_once(':') {
        // `[::1]` has colons, too.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty() => name,
        Some((name, "")) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::options::PoolOptions;

    #[test]
    fn the_most_particular_route_wins() {
        let routes: BTreeMap<HostPattern, PoolName> = [
            ("shop.example.org", "shop"),
            ("*.example.org", "web"),
            ("*.eu.example.org", "eu"),
            ("[::1]", "local"),
            ("gone.example.org", "gone"),
        ]
        .map(|(host, pool)| (host.parse().unwrap(), pool.parse().unwrap()))
        .into();
        let pools = |name: &PoolName| {
            let pool = || Arc::new(Pool::new(name.clone(), PoolOptions::default()));
            (name.as_str() != "gone").then(pool)
        };
        let router = Router::default();
        router.replace(&routes, pools);
        let found = |host: &str| router.find(host).map(|pool| pool.name.to_string());
        for (host, pool) in [
            ("shop.example.org", "shop"),
            ("SHOP.example.org.:8080", "shop"),
            ("shop.example.org:", "shop"),
            ("a.example.org", "web"),
            ("b.a.example.org", "web"),
            ("x.eu.example.org", "eu"),
            ("[::1]:80", "local"),
            ("[::1]", "local"),
        ] {
            assert_eq!(found(host).as_deref(), Some(pool), "{host}");
        }
        for host in ["example.org", ".example.org", "other.org", "", "shop.example.org.evil.com", "::1"] {
            assert_eq!(found(host), None, "{host}");
        }
        let mut routes = routes;
        routes.insert("*".parse().unwrap(), "rest".parse().unwrap());
        router.replace(&routes, pools);
        let found = |host: &str| router.find(host).map(|pool| pool.name.to_string());
        assert_eq!(found("other.org").as_deref(), Some("rest"));
        assert_eq!(found("").as_deref(), Some("rest"));
    }
}
