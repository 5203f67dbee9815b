//! A pool's file in Apache's language: one `<Proxy balancer://…>` block whose `BalancerMember` lines are the nodes.
//!
//! One directive a line, `\` at its end goes on; names of directives in any case. See "Configuration Files" and
//! `mod_proxy` in Apache's documentation.

use std::fmt::Write as _;
use std::ops::Range;

use vr_common::names::{Node, PoolName};

use crate::pools_in_files::text::splice;

/// A directive, or the begin or end of a block.
struct Directive {
    words: Vec<String>,
    /// Its line, or lines, with what ends them.
    range: Range<usize>,
}

/// One `BalancerMember` line.
struct Member {
    range: Range<usize>,
    scheme: String,
    node: Node,
}

/// The pool's block.
struct Block {
    /// After its first line.
    start: usize,
    members: Vec<Member>,
}

/// The words of a line; quotes that never end are no error for Apache.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut letters = line.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let Some(&first) = letters.peek() else { return words };
        let mut word = String::new();
        if matches!(first, '"' | '\'') {
            letters.next();
            while let Some(letter) = letters.next().filter(|letter| *letter != first) {
                if letter == '\\' { word.extend(letters.next()) } else { word.push(letter) }
            }
        } else {
            while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace()) {
                word.push(letter);
            }
        }
        words.push(word);
    }
}

fn directives(text: &str) -> Vec<Directive> {
    let mut all = Vec::new();
    let mut at = 0;
    let mut begin = 0;
    let mut line = String::new();
    for piece in text.split_inclusive('\n') {
        at += piece.len();
        let content = piece.trim_end_matches(['\n', '\r']);
        if let Some(content) = content.strip_suffix('\\').filter(|_| piece.ends_with('\n')) {
            line += content;
            continue;
        }
        line += content;
        let trimmed = line.trim();
        if !trimmed.is_empty() && !trimmed.starts_with('#') {
            // The bracket of a block's begin is no part of its last word.
            let plain = if trimmed.starts_with('<') { trimmed.strip_suffix('>') } else { None };
            all.push(Directive { words: words(plain.unwrap_or(trimmed)), range: begin..at });
        }
        line.clear();
        begin = at;
    }
    all
}

fn member(words: &[String], range: Range<usize>) -> Result<Member, String> {
    let url = words.get(1).map(String::as_str).unwrap_or_default();
    let unknown = || format!("BalancerMember {url:?} is no SCHEME://host:port, so it cannot be a node");
    let (scheme, address) = url.split_once("://").ok_or_else(unknown)?;
    // A path behind it is the same for all requests, and stays while the node does.
    let address = address.split('/').next().unwrap_or_default();
    let port = match scheme {
        "http" | "ws" | "h2c" => 80,
        "https" | "wss" | "h2" => 443,
        "ajp" => 8009,
        "fcgi" => 8000,
        "scgi" => 4000,
        "uwsgi" => 3031,
        _ => return Err(unknown()),
    };
    let node = address.parse::<Node>().or_else(|_| format!("{address}:{port}").parse());
    Ok(Member { range, scheme: scheme.to_owned(), node: node.map_err(|_| unknown())? })
}

/// The pool's block; none if the text is about something else.
fn find(pool: &PoolName, text: &str) -> Result<Option<Block>, String> {
    let mut found: Option<Block> = None;
    let mut open: Option<bool> = None;
    for Directive { words, range } in directives(text) {
        let name = words[0].to_ascii_lowercase();
        if name == "<proxy" {
            if open.is_some() {
                return Err("a <Proxy> inside of another one".to_owned());
            }
            let own = format!("balancer://{pool}");
            let is_ours =
                words.get(1).is_some_and(|url| url.trim_end_matches('/').eq_ignore_ascii_case(&own));
            if is_ours && found.is_some() {
                return Err(format!("<Proxy balancer://{pool}> is there twice"));
            }
            if is_ours {
                found = Some(Block { start: range.end, members: Vec::new() });
            }
            open = Some(is_ours);
        } else if name == "</proxy" {
            if open.take().is_none() {
                return Err("a </Proxy> that ends nothing".to_owned());
            }
        } else if name == "balancermember"
            && open == Some(true)
            && let Some(block) = &mut found
        {
            block.members.push(member(&words, range)?);
        }
    }
    if open.is_some() {
        return Err("a <Proxy> that never ends".to_owned());
    }
    Ok(found)
}

/// The name that Apache gives to the shared memory of a balancer. Two balancers with the same one share their members, or
/// make it end when it restarts (AH01186); its test of the configuration finds nothing wrong.
pub(super) fn memory_name(balancer: &str) -> String {
    let letter =
        |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
    balancer.chars().map(letter).collect()
}

/// The pool's nodes; none if the text is about something else.
pub(super) fn parse(pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
    let found = find(pool, text)?;
    Ok(found.map(|block| block.members.into_iter().map(|member| member.node).collect()))
}

/// The pool's file. `options` follow the URL of each new member.
pub(super) fn render(
    pool: &PoolName,
    nodes: &[Node],
    old: Option<&str>,
    options: &str,
) -> Result<String, String> {
    let begin = || {
        format!(
            "# Pool {pool}, written by Velociraptor; all but the members is kept.\n<Proxy \"balancer://{pool}\">\n</Proxy>\n"
        )
    };
    let old = old.map_or_else(begin, str::to_owned);
    let Some(block) = find(pool, &old)? else {
        return Err(format!("it has no block <Proxy balancer://{pool}>"));
    };
    let scheme = block.members.first().map_or("http", |member| member.scheme.as_str());
    let mut kept: Vec<&Node> = Vec::new();
    let mut parts = Vec::new();
    for Member { range, node, .. } in &block.members {
        if nodes.contains(node) && !kept.contains(&node) {
            kept.push(node);
        } else {
            parts.push((range.clone(), String::new()));
        }
    }
    let mut new = String::new();
    for node in nodes.iter().filter(|node| !kept.contains(node)) {
        let options = if options.is_empty() { String::new() } else { format!(" {options}") };
        let _ = writeln!(new, "  BalancerMember \"{scheme}://{node}\"{options}");
    }
    let end = block.members.last().map_or(block.start, |member| member.range.end);
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
    fn a_new_file_has_a_balancer_with_a_member_for_each_node() {
        let two = nodes(&["host3.example.org:5010", "[::1]:80"]);
        let text = render(&pool(), &two, None, "retry=5").unwrap();
        let (head, rest) = text.split_once('\n').unwrap();
        assert!(head.starts_with("# Pool my-app"), "{head}");
        assert_eq!(
            rest,
            "<Proxy \"balancer://my-app\">\n  BalancerMember \"http://host3.example.org:5010\" retry=5\n  \
             BalancerMember \"http://[::1]:80\" retry=5\n</Proxy>\n"
        );
        assert_eq!(parse(&pool(), &text), Ok(Some(two)));
        let empty = render(&pool(), &[], Some(&text), "").unwrap();
        assert!(empty.ends_with("<Proxy \"balancer://my-app\">\n</Proxy>\n"), "{empty}");
        assert_eq!(parse(&pool(), &empty), Ok(Some(Vec::new())));
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let old = "# mine\n<Proxy balancer://other>\n BalancerMember http://h9:9\n</Proxy>\n\
             <proxy \"balancer://My-App/\" >\n  balancermember 'https://h1:1/' loadfactor=5 \\\n    route=a\n  \
             BalancerMember https://h2\n  ProxySet lbmethod=bybusyness\n</PROXY>\nProxyPass /x balancer://my-app\n";
        assert_eq!(parse(&pool(), old), Ok(Some(nodes(&["h1:1", "h2:443"]))));
        assert_eq!(render(&pool(), &nodes(&["h1:1", "h2:443"]), Some(old), "").unwrap(), old);
        let swapped = render(&pool(), &nodes(&["h1:1", "h3:3"]), Some(old), "retry=0").unwrap();
        let expected =
            old.replace("  BalancerMember https://h2\n", "  BalancerMember \"https://h3:3\" retry=0\n");
        assert_eq!(swapped, expected);
        let none = render(&pool(), &[], Some(old), "").unwrap();
        assert!(none.contains("\" >\n  ProxySet lbmethod=bybusyness\n</PROXY>\n"), "{none}");
        let back = render(&pool(), &nodes(&["h5:5"]), Some(&none), "").unwrap();
        assert!(back.contains("\" >\n  BalancerMember \"http://h5:5\"\n  ProxySet"), "{back}");
    }

    #[test]
    fn balancers_that_apache_cannot_tell_apart_are_known() {
        assert_eq!(["My-app", "my_app", "my.APP"].map(memory_name), ["my_app"; 3]);
        assert_ne!(memory_name("myapp"), memory_name("my_app"));
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is_broken() {
        for other in [
            "",
            "# <Proxy balancer://my-app>\n",
            "<Proxy balancer://other>\nBalancerMember http://h:1\n</Proxy>",
            "<Proxy *>\n</Proxy>\nBalancerMember balancer://my-app http://h:1\n",
        ] {
            assert_eq!(parse(&pool(), other), Ok(None), "{other:?}");
        }
        for broken in [
            "<Proxy balancer://my-app>\n",
            "</Proxy>\n",
            "<Proxy balancer://my-app>\nBalancerMember\n</Proxy>\n",
            "<Proxy balancer://my-app>\nBalancerMember h:1\n</Proxy>\n",
            "<Proxy balancer://my-app>\nBalancerMember unix:/x|http://h\n</Proxy>\n",
            "<Proxy balancer://my-app>\n</Proxy>\n<Proxy balancer://my-app>\n</Proxy>\n",
            "<Proxy balancer://my-app>\n<Proxy balancer://my-app>\n</Proxy>\n</Proxy>\n",
        ] {
            assert!(parse(&pool(), broken).is_err(), "{broken:?}");
            assert!(render(&pool(), &nodes(&["h:1"]), Some(broken), "").is_err(), "{broken:?}");
        }
    }
}
