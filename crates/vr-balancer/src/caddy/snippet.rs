//! A pool's file in Caddy's language: one snippet whose `to` lines are the nodes.
//!
//! `reverse_proxy { import my_app }` puts them where the operator wants them. See "Caddyfile concepts" in Caddy's
//! documentation: tokens, blocks, snippets.

use std::ops::Range;

use vr_common::names::{Node, PoolName};

use crate::pools_in_files::text::{line_end, splice};

/// What may stand before an upstream's host.
const SCHEMES: [&str; 3] = ["http://", "https://", "h2c://"];

#[derive(Debug)]
struct Token {
    text: String,
    range: Range<usize>,
    line: usize,
    /// It was in quotes, so a brace is no brace.
    is_quoted: bool,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        !self.is_quoted && self.text == text
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut line = 0;
    let mut letters = text.char_indices().peekable();
    while let Some(&(start, letter)) = letters.peek() {
        match letter {
            '\n' => {
                line += 1;
                letters.next();
            }
            _ if letter.is_whitespace() => {
                letters.next();
            }
            // In the middle of a word it means nothing.
            '#' => while letters.next_if(|(_, letter)| *letter != '\n').is_some() {},
            quote @ ('"' | '`') => {
                let (own_line, mut word) = (line, String::new());
                letters.next();
                loop {
                    match letters.next() {
                        None => return Err("a quote that never ends".to_owned()),
                        Some((_, letter)) if letter == quote => break,
                        Some((_, '\\')) if quote == '"' => match letters.next() {
                            Some((_, '"')) => word.push('"'),
                            Some((_, other)) => word.extend(['\\', other]),
                            None => {}
                        },
                        Some((_, letter)) => {
                            line += usize::from(letter == '\n');
                            word.push(letter);
                        }
                    }
                }
                let end = letters.peek().map_or(text.len(), |(at, _)| *at);
                found.push(Token { text: word, range: start..end, line: own_line, is_quoted: true });
            }
            _ => {
                let mut word = String::new();
                while let Some((_, letter)) = letters.next_if(|(_, letter)| !letter.is_whitespace()) {
                    word.push(letter);
                    // A line that goes on with the next.
                    if letter == '\\' && letters.next_if(|(_, next)| *next == '\n').is_some() {
                        word.pop();
                        break;
                    }
                }
                let end = letters.peek().map_or(text.len(), |(at, _)| *at);
                if !word.is_empty() {
                    found.push(Token { text: word, range: start..end, line, is_quoted: false });
                }
            }
        }
    }
    Ok(found)
}

/// One upstream.
#[derive(Debug)]
struct Upstream {
    range: Range<usize>,
    scheme: &'static str,
    node: Node,
}

/// One `to` directive.
#[derive(Debug)]
struct To {
    range: Range<usize>,
    upstreams: Vec<Upstream>,
}

/// The pool's snippet.
struct Snippet {
    /// After its `{`.
    start: usize,
    lines: Vec<To>,
}

fn upstream(token: &Token) -> Result<Upstream, String> {
    let scheme = SCHEMES.into_iter().find(|scheme| token.text.starts_with(scheme)).unwrap_or("");
    let node = token.text[scheme.len()..].parse::<Node>();
    let reason = |_| format!("upstream {:?} is no host:port, so it cannot be a node", token.text);
    Ok(Upstream { range: token.range.clone(), scheme, node: node.map_err(reason)? })
}

/// The pool's snippet; none if the text is about something else.
fn find(pool: &PoolName, text: &str) -> Result<Option<Snippet>, String> {
    let all = tokens(text)?;
    let mut depth = 0;
    let mut found: Option<Snippet> = None;
    let mut is_inside = false;
    let mut at = 0;
    while at < all.len() {
        let line = all[at].line;
        let count = all[at..].iter().take_while(|token| token.line == line).count();
        let tokens = &all[at..at + count];
        at += count;
        if depth == 1 && is_inside && tokens[0].is("to") {
            let upstreams = tokens[1..].iter().map(upstream).collect::<Result<Vec<_>, _>>()?;
            if let Some(snippet) = &mut found {
                let range = tokens[0].range.start..tokens[count - 1].range.end;
                snippet.lines.push(To { range, upstreams });
            }
        }
        if depth == 0 && tokens[0].is(&format!("({pool})")) {
            let Some(open) = tokens.get(1).filter(|token| token.is("{")) else {
                return Err(format!("({pool}) without a block"));
            };
            if tokens.len() > 2 {
                return Err(format!("something behind the {{ of ({pool})"));
            }
            if found.is_some() {
                return Err(format!("the snippet ({pool}) is there twice"));
            }
            found = Some(Snippet { start: open.range.end, lines: Vec::new() });
            is_inside = true;
        }
        for token in tokens {
            if token.is("{") {
                depth += 1;
            } else if token.is("}") {
                if depth == 0 {
                    return Err("a } that closes nothing".to_owned());
                }
                depth -= 1;
                is_inside &= depth > 0;
            }
        }
    }
    if depth > 0 {
        return Err("a { that is never closed".to_owned());
    }
    Ok(found)
}

/// The pool's nodes; none if the text is about something else.
pub(super) fn parse(pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
    let found = find(pool, text)?;
    let upstreams = |snippet: Snippet| snippet.lines.into_iter().flat_map(|line| line.upstreams);
    Ok(found.map(|snippet| upstreams(snippet).map(|upstream| upstream.node).collect()))
}

/// The pool's file.
pub(super) fn render(pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
    let begin = || {
        format!(
            "# Pool {pool}, written by Velociraptor; all but the nodes is kept. To use it: reverse_proxy {{ import {pool} \
             }}\n({pool}) {{\n}}\n"
        )
    };
    let old = old.map_or_else(begin, str::to_owned);
    let Some(snippet) = find(pool, &old)? else { return Err(format!("it has no snippet ({pool})")) };
    // All upstreams of a handler have to have the same.
    let scheme = snippet.lines.iter().flat_map(|line| &line.upstreams).map(|upstream| upstream.scheme).next();
    let mut kept: Vec<&Node> = Vec::new();
    let mut parts = Vec::new();
    // New ones come after the last line of nodes, else first in the block.
    let mut end = line_end(&old, snippet.start);
    for To { range, upstreams } in &snippet.lines {
        let mut stays: Vec<&str> = Vec::new();
        for Upstream { range, node, .. } in upstreams {
            if nodes.contains(node) && !kept.contains(&node) {
                kept.push(node);
                stays.push(&old[range.clone()]);
            }
        }
        end = line_end(&old, range.end);
        if stays.is_empty() {
            // With a comment that stands behind it.
            parts.push((line_start(&old, range.start)..end, String::new()));
        } else if stays.len() < upstreams.len() {
            parts.push((range.clone(), format!("to {}", stays.join(" "))));
        }
    }
    let new = nodes.iter().filter(|node| !kept.contains(node));
    let new = new.map(|node| format!("\tto {}{node}\n", scheme.unwrap_or(""))).collect();
    parts.push((end..end, new));
    Ok(splice(&old, &parts))
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
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
    fn a_new_file_has_a_snippet_with_an_upstream_for_each_node() {
        let two = nodes(&["host3.example.org:5010", "[::1]:80"]);
        let text = render(&pool(), &two, None).unwrap();
        let (head, rest) = text.split_once('\n').unwrap();
        assert!(head.starts_with("# Pool my-app"), "{head}");
        assert_eq!(rest, "(my-app) {\n\tto host3.example.org:5010\n\tto [::1]:80\n}\n");
        assert_eq!(parse(&pool(), &text), Ok(Some(two)));
        let empty = render(&pool(), &[], Some(&text)).unwrap();
        assert!(empty.ends_with("(my-app) {\n}\n"), "{empty}");
        assert_eq!(parse(&pool(), &empty), Ok(Some(Vec::new())));
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let old = "# mine\n(other) {\n\tto h9:9\n}\n(my-app) { # the app\n\tto http://h1:1 http://h2:2 # both\n  \
                   to \"http://h3:3\"\n\tlb_policy least_conn\n\ttransport http {\n\t\tkeepalive 5s\n\t}\n}\n";
        assert_eq!(parse(&pool(), old), Ok(Some(nodes(&["h1:1", "h2:2", "h3:3"]))));
        assert_eq!(render(&pool(), &nodes(&["h1:1", "h2:2", "h3:3"]), Some(old)).unwrap(), old);
        let swapped = render(&pool(), &nodes(&["h2:2", "h4:4"]), Some(old)).unwrap();
        let expected = old
            .replace("to http://h1:1 http://h2:2 # both", "to http://h2:2 # both")
            .replace("  to \"http://h3:3\"\n", "\tto http://h4:4\n");
        assert_eq!(swapped, expected);
        let none = render(&pool(), &[], Some(old)).unwrap();
        assert!(none.contains("(my-app) { # the app\n\tlb_policy least_conn\n"), "{none}");
        let back = render(&pool(), &nodes(&["h5:5"]), Some(&none)).unwrap();
        assert!(back.contains("(my-app) { # the app\n\tto h5:5\n\tlb_policy"), "{back}");
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is_broken() {
        for other in
            ["", "# (my-app) {\n", "(other) {\n\tto h:1\n}\n", "my-app {\n}\n", "x {\n (my-app) {\n}\n}\n"]
        {
            assert_eq!(parse(&pool(), other), Ok(None), "{other:?}");
        }
        for broken in [
            "(my-app) {\n\tto h:1\n",
            "(my-app)\n",
            "(my-app) {\n\tto unix//run/x\n}\n",
            "(my-app) {\n\tto h\n}\n",
            "(my-app) {\n\tto {$HOST}:1\n}\n",
            "(my-app) {\n\tto \"h:1\n}\n",
            "(my-app) {\n}\n(my-app) {\n}\n",
            "(my-app) { to h:1 }\n",
            "}\n",
        ] {
            assert!(parse(&pool(), broken).is_err(), "{broken:?}");
            assert!(render(&pool(), &nodes(&["h:1"]), Some(broken)).is_err(), "{broken:?}");
        }
        // A directive in a block of another one is that one's.
        let nested = "(my-app) {\n\tx {\n\t\tto h:1\n\t}\n\tto h:2\n}";
        assert_eq!(parse(&pool(), nested), Ok(Some(nodes(&["h:2"]))));
        let odd = "(my-app) {\n\tto h:2 \\\n\t\th:3\n\tto `h:4`\n}";
        let text = render(&pool(), &nodes(&["h:3", "h:5"]), Some(odd)).unwrap();
        assert_eq!(text, "(my-app) {\n\tto h:3\n\tto h:5\n}");
    }
}
