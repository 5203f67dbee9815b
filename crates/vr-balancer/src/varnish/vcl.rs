//! A pool's file in Varnish's language, and the file that includes all of them.
//!
//! VCL knows identifiers of letters, digits and `_` that begin with a letter. In a pool's identifier `_x` and two hexadecimal
//! digits stand for any other character, so that no two pools share one.

use std::fmt::Write as _;
use std::ops::Range;

use vr_common::names::{Node, PoolName};

/// Where requests for a pool without nodes go, so that they get an error at once: Varnish refuses a configuration that
/// has no backend at all.
const NOBODY: (&str, &str) = ("127.0.0.1", "1");
/// How the identifier of that backend ends; no node's does.
const NONE: &str = "_x_none";

/// VCL's own words, and names that people's configurations have.
const RESERVED: [&str; 36] = [
    "acl",
    "backend",
    "beresp",
    "bereq",
    "blob",
    "call",
    "client",
    "default",
    "directors",
    "else",
    "elseif",
    "elsif",
    "false",
    "if",
    "import",
    "include",
    "local",
    "new",
    "none",
    "now",
    "obj",
    "probe",
    "remote",
    "req",
    "req_top",
    "resp",
    "restart",
    "return",
    "server",
    "sess",
    "set",
    "std",
    "storage",
    "sub",
    "true",
    "unset",
];

/// A pool's name as an identifier; different for every pool.
pub(super) fn identifier(pool: &PoolName) -> String {
    let name = pool.as_str();
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let prefix = if !begins_well || RESERVED.contains(&name) || name == "vcl" { "p_x_" } else { "" };
    format!("{prefix}{}", escape(name))
}

/// The name of a node's backend in a pool: Varnish's counters go by that name.
fn backend_name(pool: &str, node: &Node) -> String {
    format!("{pool}_x_{}", escape(&node.to_string()))
}

/// The node of a backend that was named by [`backend_name`].
pub(super) fn node_of(backend: &str) -> Option<Node> {
    let (_, escaped) = backend.rsplit_once("_x_")?;
    let mut parts = escaped.split("_x");
    let mut text = parts.next()?.to_owned();
    for part in parts {
        text.push(char::from(u8::from_str_radix(part.get(..2)?, 16).ok()?));
        text += part.get(2..)?;
    }
    text.parse().ok()
}

fn escape(name: &str) -> String {
    let mut text = String::new();
    let mut letters = name.chars().peekable();
    while let Some(letter) = letters.next() {
        let is_mark = letter == '_' && letters.peek() == Some(&'x');
        if (letter.is_ascii_alphanumeric() || letter == '_') && !is_mark {
            text.push(letter);
        } else {
            let _ = write!(text, "_x{:02x}", u32::from(letter));
        }
    }
    text
}

/// One `backend NAME { … }`.
#[derive(Debug)]
struct Backend {
    /// From `backend` to after its `}`.
    range: Range<usize>,
    name: String,
    node: Node,
    is_placeholder: bool,
}

/// The text with comments and the insides of strings blanked out, so that what is left is structure; of the same length.
fn structure(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut plain = bytes.to_vec();
    let mut at = 0;
    let blank = |plain: &mut Vec<u8>, range: Range<usize>| plain[range].fill(b' ');
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let find = |from: usize, end: &str| {
            text.get(at + from..).and_then(|rest| rest.find(end)).map(|found| at + from + found)
        };
        if rest.starts_with(b"#") || rest.starts_with(b"//") {
            let end = find(1, "\n").unwrap_or(bytes.len());
            blank(&mut plain, at..end);
            at = end;
        } else if rest.starts_with(b"/*") {
            let end = find(2, "*/").ok_or("a comment that never ends")? + 2;
            blank(&mut plain, at..end);
            at = end;
        } else if rest.starts_with(b"{\"") {
            let end = find(2, "\"}").ok_or("a long string that never ends")? + 2;
            blank(&mut plain, at..end);
            at = end;
        } else if rest.starts_with(b"\"") {
            let end = find(1, "\"").ok_or("a string that never ends")?;
            blank(&mut plain, at + 1..end);
            at = end + 1;
        } else {
            at += 1;
        }
    }
    Ok(plain)
}

/// The place after the `}` that closes the `{` at this place.
fn end_of_block(plain: &[u8], open: usize) -> Result<usize, String> {
    let mut depth = 0;
    for (at, byte) in plain.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
    }
    Err("a { that is never closed".to_owned())
}

/// Where a word stands by itself.
fn words<'a>(plain: &'a [u8], word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte));
    let length = word.len();
    (0..plain.len().saturating_sub(length)).filter(move |&at| {
        plain[at..].starts_with(word.as_bytes())
            && !is_part(at.checked_sub(1).and_then(|before| plain.get(before)))
            && !is_part(plain.get(at + length))
    })
}

/// What a backend's field says, such as `.host = "h"`.
fn field(text: &str, plain: &[u8], block: Range<usize>, name: &str) -> Option<String> {
    let at = words(&plain[block.clone()], name).next()? + block.start + name.len();
    let rest = text.get(at..block.end)?.trim_start().strip_prefix('=')?.trim_start();
    let quoted = rest.strip_prefix('"')?;
    Some(quoted[..quoted.find('"')?].to_owned())
}

/// All backends of the text; also those that the published client wrote within a director.
fn backends(text: &str) -> Result<Vec<Backend>, String> {
    let plain = structure(text)?;
    let mut found = Vec::new();
    let starts = words(&plain, "backend").chain(words(&plain, ".backend"));
    for start in starts {
        let Some(open) = plain[start..].iter().position(|&byte| byte == b'{').map(|at| at + start) else {
            continue;
        };
        let between = text.get(start..open).unwrap_or_default();
        let name =
            between.trim_start_matches('.').trim_start_matches("backend").trim().trim_matches('=').trim();
        if name.contains([';', '(', ')', ',', '\n', ' ']) {
            continue;
        }
        let end = end_of_block(&plain, open)?;
        let Some(host) = field(text, &plain, open..end, ".host") else {
            return Err(format!("backend {name} has no .host, so it cannot be a node"));
        };
        let port = field(text, &plain, open..end, ".port").unwrap_or_else(|| "80".to_owned());
        let node = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let node = node.parse::<Node>().map_err(|error| error.to_string())?;
        let is_placeholder = name.ends_with(NONE);
        found.push(Backend { range: start..end, name: name.to_owned(), node, is_placeholder });
    }
    found.sort_by_key(|backend| backend.range.start);
    Ok(found)
}

/// Whether the text makes the director of this pool, in today's words or in those of Varnish 3.
fn makes_director(pool: &PoolName, text: &str) -> Result<bool, String> {
    let plain = structure(text)?;
    let plain = String::from_utf8_lossy(&plain).split_whitespace().collect::<Vec<_>>().join(" ");
    let (today, earlier) = (format!("new {} =", identifier(pool)), format!("director {pool} "));
    Ok(plain.contains(&today) || plain.contains(&today.replace(" =", "=")) || plain.contains(&earlier))
}

/// The pool's nodes; none if the text is about something else.
pub(super) fn parse(pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
    let found = backends(text)?;
    // The published client wrote nothing at all for a pool without nodes.
    if !text.trim().is_empty() && !makes_director(pool, text)? {
        return Ok(None);
    }
    Ok(Some(
        found.into_iter().filter(|backend| !backend.is_placeholder).map(|backend| backend.node).collect(),
    ))
}

/// The pool's file. Of a backend that stays, everything is kept; of an earlier file otherwise only what stands before
/// its first backend, and the kind of director.
pub(super) fn render(pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
    let name = identifier(pool);
    let old = old.filter(|old| !old.trim().is_empty());
    if let Some(old) = old
        && parse(pool, old)?.is_none()
    {
        return Err(format!("it does not make the director {name}"));
    }
    let earlier = match old {
        // What Varnish 3 took cannot be kept.
        Some(old) if !old.contains("director ") => backends(old)?,
        _ => Vec::new(),
    };
    let old = old.filter(|_| !earlier.is_empty());
    let mut text = match (old, earlier.first()) {
        (Some(old), Some(first)) => old[..first.range.start].to_owned(),
        _ => format!(
            "# Pool {pool}, written by Velociraptor. Changes of a backend's settings are kept.\nimport directors;\n\n"
        ),
    };
    let kept = |node: &Node| earlier.iter().find(|backend| backend.node == *node && !backend.is_placeholder);
    let mut members = Vec::new();
    for node in nodes {
        if let (Some(backend), Some(old)) = (kept(node), old) {
            let _ = writeln!(text, "{}", &old[backend.range.clone()]);
            members.push(backend.name.clone());
            continue;
        }
        let own = backend_name(&name, node);
        text += &backend_text(&own, node.host.as_str(), &node.port.to_string());
        members.push(own);
    }
    if nodes.is_empty() {
        let own = format!("{name}{NONE}");
        text += &backend_text(&own, NOBODY.0, NOBODY.1);
        members.push(own);
    }
    let kind = old.and_then(|old| director_kind(&name, old)).unwrap_or_else(|| "round_robin()".to_owned());
    let _ = writeln!(text, "\nsub vcl_init {{\n    new {name} = directors.{kind};");
    for member in members {
        let weight = old.and_then(|old| arguments_of(&name, &member, old)).unwrap_or_default();
        // Those that want a weight want it of every backend.
        let weight = if weight.is_empty() && needs_weight(&kind) { ", 1".to_owned() } else { weight };
        let _ = writeln!(text, "    {name}.add_backend({member}{weight});");
    }
    text += "}\n";
    Ok(text)
}

fn backend_text(name: &str, host: &str, port: &str) -> String {
    format!("backend {name} {{\n    .host = \"{host}\";\n    .port = \"{port}\";\n}}\n")
}

fn needs_weight(kind: &str) -> bool {
    kind.starts_with("random") || kind.starts_with("hash")
}

/// Which director a person chose, such as `random()`.
fn director_kind(name: &str, old: &str) -> Option<String> {
    let after = old.split(&format!("new {name}")).nth(1)?.trim_start().strip_prefix('=')?.trim_start();
    let kind = after.strip_prefix("directors.")?.split(';').next()?.trim();
    Some(kind.to_owned()).filter(|kind| !kind.is_empty())
}

/// What a person wrote after a backend in `add_backend`, such as `, 10.0`.
fn arguments_of(name: &str, member: &str, old: &str) -> Option<String> {
    // The names of others may begin with this one.
    let call = format!("{name}.add_backend({member}");
    let more = old.split(&call).skip(1).filter_map(|after| after.split(')').next());
    more.map(str::to_owned).find(|more| more.trim_start().starts_with(','))
}

/// The pool's nodes as Varnish shows them among the whole of a VCL; none if they are not there.
pub(super) fn find(pool: &PoolName, source: &str) -> Option<Vec<Node>> {
    // `// VCL.SHOW 3 210 /etc/varnish/pool-web.vcl` begins each file.
    let mut files = source.split("// VCL.SHOW ").skip(1).filter_map(|file| file.split_once('\n'));
    files.find_map(|(_, text)| if makes_director(pool, text).ok()? { parse(pool, text).ok()? } else { None })
}

/// The file that includes the pools' files, with or without one of them. Whatever else is in it stays.
pub(super) fn write_includes(old: Option<&str>, path: &str, is_there: bool) -> String {
    let line = format!("include \"{path}\";");
    let old = old.unwrap_or("# The pools of Velociraptor; each line is kept by it.\n");
    let is_ours = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ") == line;
    let has_line = old.lines().any(is_ours);
    if is_there && has_line {
        return old.to_owned();
    }
    if is_there {
        let end = if old.is_empty() || old.ends_with('\n') { "" } else { "\n" };
        return format!("{old}{end}{line}\n");
    }
    old.split_inclusive('\n').filter(|text| !is_ours(text)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pool(name: &str) -> PoolName {
        name.parse().unwrap()
    }

    fn nodes(addresses: &[&str]) -> Vec<Node> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn identifiers_are_valid_and_never_shared() {
        assert_eq!(identifier(&pool("my_app")), "my_app");
        assert_eq!(identifier(&pool("my-app.eu")), "my_x2dapp_x2eeu");
        assert_eq!(identifier(&pool("a_x2db")), "a_x5fx2db");
        assert_eq!(identifier(&pool("9lives")), "p_x_9lives");
        assert_eq!(identifier(&pool("backend")), "p_x_backend");
        let names = [
            "a-b",
            "a.b",
            "a_b",
            "a_x2db",
            "a_x5fx2db",
            "_",
            "9",
            "p_x_9",
            "p_x_backend",
            "backend",
            "p",
            "p_x2d",
            "p-",
        ];
        let all: BTreeSet<String> = names.iter().map(|name| identifier(&pool(name))).collect();
        assert_eq!(all.len(), names.len(), "{all:?}");
        for name in all {
            assert!(name.starts_with(|c: char| c.is_ascii_alphabetic()));
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
        }
    }

    #[test]
    fn a_backend_tells_its_node() {
        for node in nodes(&["h1.example-site.net:5000", "[::1]:80", "a_x2d:1", "_x_:9", "10.0.0.1:65535"]) {
            for pool in ["web", "a_x_b", "x-", "_x"] {
                let name = backend_name(&identifier(&pool.parse().unwrap()), &node);
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
                assert_eq!(node_of(&name), Some(node.clone()), "{name}");
            }
        }
        for other in ["mine", "web_x_none", "web_x_", "web_x_h_x3", "web_x_h_xzz80", ""] {
            assert_eq!(node_of(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_pool_is_written_and_read() {
        let text = render(&pool("my-app"), &nodes(&["h1:5000", "[::1]:5001"]), None).unwrap();
        assert!(
            text.contains(
                "backend my_x2dapp_x_h1_x3a5000 {\n    .host = \"h1\";\n    .port = \"5000\";\n}\n"
            ),
            "{text}"
        );
        assert!(text.contains("    .host = \"::1\";\n"), "{text}");
        assert!(text.ends_with(
            "sub vcl_init {\n    new my_x2dapp = directors.round_robin();\n    \
             my_x2dapp.add_backend(my_x2dapp_x_h1_x3a5000);\n    \
             my_x2dapp.add_backend(my_x2dapp_x__x5b_x3a_x3a1_x5d_x3a5001);\n}\n"
        ));
        assert_eq!(parse(&pool("my-app"), &text), Ok(Some(nodes(&["h1:5000", "[::1]:5001"]))));
        assert_eq!(parse(&pool("other"), &text), Ok(None));
        let low = nodes(&["127.0.0.1:1"]);
        assert_eq!(parse(&pool("a"), &render(&pool("a"), &low, None).unwrap()), Ok(Some(low)));
        let empty = render(&pool("my-app"), &[], Some(&text)).unwrap();
        assert_eq!(parse(&pool("my-app"), &empty), Ok(Some(Vec::new())));
        let again = render(&pool("my-app"), &nodes(&["h1:5000", "[::1]:5001"]), Some(&empty)).unwrap();
        assert_eq!(again, text);
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let old = "# mine: } {\nimport directors;\nprobe up { .url = \"/up\"; }\n\
             backend web_x_0 { .host = \"h1\"; .port = \"1\"; .probe = up; .max_connections = 50; }\n\
             backend mine {\n  .host = \"h2\"; // } a comment\n  .port = \"2\";\n}\n\
             sub vcl_init {\n    new web = directors.random();\n    web.add_backend(web_x_0, 10);\n    web.add_backend(mine, 5);\n}\n";
        assert_eq!(parse(&pool("web"), old), Ok(Some(nodes(&["h1:1", "h2:2"]))));
        let text = render(&pool("web"), &nodes(&["h2:2", "h3:3", "h1:1"]), Some(old)).unwrap();
        assert!(text.starts_with("# mine: } {\nimport directors;\nprobe up { .url = \"/up\"; }\n"), "{text}");
        assert!(text.contains(
            "backend web_x_0 { .host = \"h1\"; .port = \"1\"; .probe = up; .max_connections = 50; }\n"
        ));
        assert!(text.contains("// } a comment") && text.contains("new web = directors.random();"), "{text}");
        for line in [
            "web.add_backend(mine, 5);",
            "web.add_backend(web_x_0, 10);",
            "web.add_backend(web_x_h3_x3a3, 1);",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(parse(&pool("web"), &text), Ok(Some(nodes(&["h2:2", "h3:3", "h1:1"]))));
    }

    #[test]
    fn names_that_begin_alike_are_told_apart() {
        let text = render(&pool("web"), &nodes(&["h:8080", "h:80"]), None).unwrap();
        let text =
            text.replace("round_robin", "random").replace("a8080)", "a8080, 5)").replace("a80)", "a80, 10)");
        let text = text.replace("    .host = ", "    .host_header = \"app\"; .host = ");
        let again = render(&pool("web"), &nodes(&["h:8080", "h:80"]), Some(&text)).unwrap();
        assert_eq!(again, text);
        assert!(again.contains("(web_x_h_x3a8080, 5);") && again.contains("(web_x_h_x3a80, 10);"), "{again}");
    }

    #[test]
    fn what_the_published_client_wrote_is_read_and_becomes_todays() {
        let theirs = "\n// This pool was written by Velociraptor.  You probably shouldn't edit it.\ndirector my_app round-robin {\n  \
             {.backend={.host=\"h1\"; .port=\"5000\";}}\n  {.backend={.host=\"h2\"; .port=\"5001\";}}\n}\n";
        assert_eq!(parse(&pool("my_app"), theirs), Ok(Some(nodes(&["h1:5000", "h2:5001"]))));
        assert_eq!(parse(&pool("my_app"), ""), Ok(Some(Vec::new())));
        let text = render(&pool("my_app"), &nodes(&["h2:5001"]), Some(theirs)).unwrap();
        assert!(
            !text.contains("director my_app") && text.contains("new my_app = directors.round_robin();"),
            "{text}"
        );
    }

    #[test]
    fn what_is_broken_is_refused() {
        for broken in [
            "backend a { .host = \"h\"; sub vcl_init { new web = directors.round_robin(); }",
            "/* new web = directors.round_robin();",
            "backend a { .path = \"/run/x\"; } sub vcl_init { new web = directors.round_robin(); }",
            "backend a { .host = \"h h\"; } sub vcl_init { new web = directors.round_robin(); }",
            "import \"directors; new web = directors.round_robin();",
        ] {
            assert!(parse(&pool("web"), broken).is_err(), "{broken:?}");
        }
        assert_eq!(parse(&pool("web"), "# new web = directors.round_robin();\nimport std;\n"), Ok(None));
    }

    #[test]
    fn includes_are_added_and_removed() {
        let one = write_includes(None, "/etc/varnish/pool-a.vcl", true);
        assert!(one.ends_with("include \"/etc/varnish/pool-a.vcl\";\n"));
        let two = write_includes(Some(&one), "/etc/varnish/pool-a.b.vcl", true);
        assert_eq!(write_includes(Some(&two), "/etc/varnish/pool-a.b.vcl", true), two);
        assert_eq!(write_includes(Some(&two), "/etc/varnish/pool-a.b.vcl", false), one);
        let mine = "import std; # mine\n  include   \"/etc/varnish/pool-a.vcl\";\nsub x {}";
        assert_eq!(write_includes(Some(mine), "/etc/varnish/pool-a.vcl", true), mine);
        assert_eq!(
            write_includes(Some(mine), "/etc/varnish/pool-a.vcl", false),
            "import std; # mine\nsub x {}"
        );
        assert_eq!(write_includes(Some("sub x {}"), "/p.vcl", true), "sub x {}\ninclude \"/p.vcl\";\n");
    }
}
