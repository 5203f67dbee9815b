//! A pool's file in HAProxy's language: one `backend` section whose `server` lines are the nodes.
//!
//! Lines count, not indentation: a section goes on to the next line that begins with a section's keyword. See the
//! chapters "Configuration file format" and "Quoting and escaping" of HAProxy's configuration manual.

use std::ops::Range;

use vr_common::names::{Node, PoolName};

use crate::pools_in_files::text::splice;

/// What begins a section.
const SECTIONS: [&str; 18] = [
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "fcgi-app",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// One `server` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// From the start of the line to after its end.
    range: Range<usize>,
    /// What HAProxy calls it.
    pub name: String,
    /// Where it is.
    pub node: Node,
    /// What follows the address, such as `check`.
    pub options: Vec<String>,
}

/// A pool's section.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub servers: Vec<Server>,
    /// It says something that HAProxy's runtime interface leaves out, or does not know how to do gently.
    pub needs_reload: bool,
    /// Where a line can be added at the end.
    end: usize,
}

/// The words of a line without its comment.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '#' => break,
            ' ' | '\t' | '\r' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(letters.next()),
            quote @ ('"' | '\'') => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        None => return Err("a quote that never ends".to_owned()),
                        Some(letter) if letter == quote => break,
                        Some('\\') if quote == '"' => word.extend(letters.next()),
                        Some(letter) => word.push(letter),
                    }
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

/// What HAProxy takes for an address, if it is a node.
fn node(address: &str) -> Result<Node, String> {
    let plain = ["ipv4@", "ipv6@"].iter().find_map(|family| address.strip_prefix(family)).unwrap_or(address);
    let bare_v6 = || {
        let (host, port) = plain.rsplit_once(':').filter(|(host, _)| host.contains(':'))?;
        format!("[{host}]:{port}").parse().ok()
    };
    plain
        .parse()
        .ok()
        .or_else(bare_v6)
        .ok_or_else(|| format!("server address {address:?} is no host:port, so it cannot be a node"))
}

/// The pool's section; none if the text is about something else.
pub(super) fn find(pool: &PoolName, text: &str) -> Result<Option<Section>, String> {
    let mut found: Option<Section> = None;
    let mut is_inside = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let range = at..at + line.len();
        at = range.end;
        let words = words(line.trim_end_matches('\n'))?;
        let Some(first) = words.first() else { continue };
        if SECTIONS.contains(&first.as_str()) {
            is_inside = matches!(first.as_str(), "backend" | "listen")
                && words.get(1).is_some_and(|name| name == pool.as_str());
            if is_inside && found.is_some() {
                return Err(format!("backend {pool} is there twice"));
            }
            if is_inside {
                found = Some(Section { end: range.end, ..Section::default() });
            }
            continue;
        }
        let Some(section) = found.as_mut().filter(|_| is_inside) else { continue };
        section.end = range.end;
        section.needs_reload |=
            first == "default-server" || words.iter().any(|word| word == "on-marked-down");
        if first == "server" {
            let (Some(name), Some(address)) = (words.get(1), words.get(2)) else {
                return Err("a server line without a name and an address".to_owned());
            };
            let (name, node, options) = (name.clone(), node(address)?, words[3..].to_vec());
            section.servers.push(Server { range, name, node, options });
        }
    }
    Ok(found)
}

/// The pool's nodes; none if the text is about something else.
pub(super) fn parse(pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
    let found = find(pool, text)?;
    Ok(found.map(|section| section.servers.into_iter().map(|server| server.node).collect()))
}

/// What HAProxy calls a node's server unless somebody chose another name: names have no brackets.
pub(super) fn server_name(node: &Node) -> String {
    node.to_string().replace(['[', ']'], "")
}

/// The pool's file. `options` follow the address of each new server.
pub(super) fn render(
    pool: &PoolName,
    nodes: &[Node],
    old: Option<&str>,
    options: &str,
) -> Result<String, String> {
    let begin = || {
        format!(
            "# Pool {pool}, written by Velociraptor; all but the server lines of nodes is kept.\nbackend {pool}\n"
        )
    };
    let old = old.map_or_else(begin, str::to_owned);
    let Some(section) = find(pool, &old)? else {
        return Err(format!("it has no section \"backend {pool}\""));
    };
    let mut parts = Vec::new();
    let mut kept: Vec<&Node> = Vec::new();
    let mut taken: Vec<&str> = Vec::new();
    for Server { range, name, node, .. } in &section.servers {
        if nodes.contains(node) && !kept.contains(&node) {
            kept.push(node);
            taken.push(name);
        } else {
            parts.push((range.clone(), String::new()));
        }
    }
    // After the last server, wherever it stands among other lines, else at the end.
    let end = section.servers.last().map_or(section.end, |last| last.range.end);
    let is_last_gone = parts.last().is_some_and(|(gone, _)| gone.end == end);
    let mut new = String::new();
    for node in nodes.iter().filter(|node| !kept.contains(node)) {
        if new.is_empty() && !is_last_gone && !old[..end].ends_with('\n') {
            new.push('\n');
        }
        let own = server_name(node);
        let numbered = (2..).map(|number| format!("{own}-{number}"));
        let name = std::iter::once(own.clone()).chain(numbered).find(|name| !taken.contains(&name.as_str()));
        let options = if options.is_empty() { String::new() } else { format!(" {options}") };
        new += &format!("    server {} {node}{options}\n", name.unwrap_or(own));
    }
    parts.push((end..end, new));
    Ok(splice(&old, &parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolName {
        "my-app".parse().unwrap()
    }

    fn nodes(addresses: &[&str]) -> Vec<Node> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn a_new_file_has_a_backend_with_a_server_for_each_node() {
        let two = nodes(&["host3.example.org:5010", "[::1]:80"]);
        let text = render(&pool(), &two, None, "check inter 2s").unwrap();
        let (head, rest) = text.split_once('\n').unwrap();
        assert!(head.starts_with("# Pool my-app"), "{head}");
        assert_eq!(
            rest,
            "backend my-app\n    server host3.example.org:5010 host3.example.org:5010 check inter 2s\n    \
             server ::1:80 [::1]:80 check inter 2s\n"
        );
        assert_eq!(parse(&pool(), &text), Ok(Some(two)));
        let empty = render(&pool(), &[], Some(&text), "check").unwrap();
        assert!(empty.ends_with("backend my-app\n"), "{empty}");
        assert_eq!(parse(&pool(), &empty), Ok(Some(Vec::new())));
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let old = "# mine\ndefaults\n  mode tcp\nbackend my-app # the app\n  balance leastconn\n  \
                   server big h1:1 weight 200 # the big one\n  server h2:2 h2:2\n  option httpchk\n\n\
                   # another\nbackend other\n  server x h9:9\n";
        assert_eq!(parse(&pool(), old), Ok(Some(nodes(&["h1:1", "h2:2"]))));
        assert_eq!(render(&pool(), &nodes(&["h1:1", "h2:2"]), Some(old), "check").unwrap(), old);
        let swapped = render(&pool(), &nodes(&["h1:1", "h3:3"]), Some(old), "check").unwrap();
        assert_eq!(swapped, old.replace("  server h2:2 h2:2\n", "    server h3:3 h3:3 check\n"));
        let none = render(&pool(), &[], Some(old), "").unwrap();
        assert!(none.contains("leastconn\n  option httpchk\n\n# another\nbackend other\n"), "{none}");
        let back = render(&pool(), &nodes(&["h4:4"]), Some(&none), "").unwrap();
        assert!(back.contains("  option httpchk\n    server h4:4 h4:4\n\n# another"), "{back}");
    }

    #[test]
    fn sections_of_any_shape_are_changed() {
        for old in [
            "backend my-app",
            "backend my-app\nserver \"a b\" h1:1\nserver x ipv4@h2:2 check",
            "listen my-app\n bind :80\n server h3:3 h1:1\n",
            "backend my-app\r\n\tserver h1:1 h1:1\r\n",
            "backend my-app\n server a ::1:80\n server b h1:1 error-limit 1 \\# 'x y'\n",
            "backend my-app\n server a h1:1\n server b h1:1\n",
        ] {
            for wanted in [&["h2:2"][..], &["h3:3", "h4:4"], &["h1:1", "h2:2", "h3:3"], &["[::1]:80"], &[]] {
                let mut wanted = nodes(wanted);
                let text = render(&pool(), &wanted, Some(old), "").unwrap();
                let section = find(&pool(), &text).unwrap().unwrap();
                let mut found: Vec<Node> = section.servers.iter().map(|server| server.node.clone()).collect();
                found.sort();
                wanted.sort();
                assert_eq!(found, wanted, "{old:?} became {text:?}");
                let mut names: Vec<&str> =
                    section.servers.iter().map(|server| server.name.as_str()).collect();
                names.sort_unstable();
                names.dedup();
                assert_eq!(names.len(), wanted.len(), "each has a name of its own: {text}");
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is_broken() {
        for other in ["", "# backend my-app\n", "frontend my-app\n", "backend other\n server x h:1\n"] {
            assert_eq!(parse(&pool(), other), Ok(None), "{other:?}");
        }
        for broken in [
            "backend my-app\n server x\n",
            "backend my-app\n server x \"h:1\n",
            "backend my-app\n server x unix@/run/x.sock\n",
            "backend my-app\n server x h\n",
            "backend my-app\nbackend my-app\n",
        ] {
            assert!(parse(&pool(), broken).is_err(), "{broken:?}");
            assert!(render(&pool(), &nodes(&["h:1"]), Some(broken), "").is_err(), "{broken:?}");
        }
    }

    #[test]
    fn what_the_runtime_interface_leaves_out_is_noticed() {
        let needs_reload =
            |line: &str| find(&pool(), &format!("backend my-app\n {line}\n")).unwrap().unwrap().needs_reload;
        assert!(needs_reload("default-server check"));
        assert!(needs_reload("server x h:1 on-marked-down shutdown-sessions"));
        assert!(!needs_reload("server x h:1 check inter 2s"));
    }
}
