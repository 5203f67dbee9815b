//! This host's fully qualified name.

use std::io::Read;
use std::net::ToSocketAddrs;

/// Longer files are read only so far, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// The host's name with its domain, found as the C library does: the name itself if it has a domain, else what
/// `/etc/hosts` calls it, else the first domain of `/etc/resolv.conf` in which it can be found. Without any of
/// these it is the bare name.
pub fn fully_qualified() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    qualify(&name, &read("/etc/hosts"), &read("/etc/resolv.conf"), |name| {
        // With the final dot, no other domain is tried.
        (format!("{name}."), 0_u16).to_socket_addrs().is_ok()
    })
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What can be read is better than nothing.
        let _ = file.take(LONGEST_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn qualify(name: &str, hosts: &str, resolv_conf: &str, exists: impl Fn(&str) -> bool) -> String {
    if name.contains('.') {
        return name.to_owned();
    }
    for line in hosts.lines() {
        let names = line.split('#').next().unwrap_or_default().split_whitespace().skip(1);
        if names.clone().any(|known| known == name)
            && let Some(full) = names.into_iter().find(|known| known.contains('.'))
        {
            return full.to_owned();
        }
    }
    // The last line counts, as for the C library.
    let domains = resolv_conf.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then_some(words)
    });
    domains
        .into_iter()
        .flatten()
        .map(|domain| format!("{name}.{}", domain.trim_matches('.')))
        .find(|full| exists(full))
        .unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_looked_for_in_turn() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 web.example.com web # web.not\n";
        let resolv_conf = "domain old.example\nnameserver 127.0.0.1\nsearch a.example b.example.\n";
        let exists = |name: &str| name == "db.b.example";
        for (name, expected) in [
            ("web.x.org", "web.x.org"),
            ("web", "web.example.com"),
            ("localhost", "localhost"),
            ("db", "db.b.example"),
            ("mail", "mail"),
        ] {
            assert_eq!(qualify(name, hosts, resolv_conf, exists), expected);
        }
        assert_eq!(qualify("db", "", "", exists), "db");
    }

    #[test]
    fn this_host_has_a_name() {
        let name = fully_qualified();
        assert!(name.starts_with(&*rustix::system::uname().nodename().to_string_lossy()), "{name}");
    }
}
