//! A pool's `upstream` block in nginx's language: read whoever wrote it, and written so that whatever a person added stays.
//!
//! The language: words separated by blanks, words in quotes with backslashes, `;` ends a directive, `{` and `}` hold more
//! of them, `#` begins a comment at the beginning of a word.

use std::ops::Range;

use vr_common::names::{Node, PoolName};

/// What stands in a pool without nodes, which nginx would refuse: it answers 502.
const PLACEHOLDER: &str = "127.0.0.1:1 down";

/// A directive with the place of its text.
#[derive(Debug)]
struct Directive {
    words: Vec<String>,
    /// From its first word to after its `;` or `}`.
    range: Range<usize>,
    /// What is between its braces.
    block: Option<Range<usize>>,
}

/// A token and its place.
#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

fn tokens(text: &str, from: usize, to: usize) -> Result<Vec<(Token, Range<usize>)>, String> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        let start = at;
        let token = match bytes[at] {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'#' => {
                at = text[at..to].find('\n').map_or(to, |end| at + end);
                continue;
            }
            b';' => Token::End,
            b'{' => Token::Open,
            b'}' => Token::Close,
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < to && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if at >= to {
                    return Err("a quote that never ends".to_owned());
                }
                Token::Word(text.get(start + 1..at).unwrap_or_default().to_owned())
            }
            _ => {
                while at < to && !b" \t\r\n;{}".contains(&bytes[at]) {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = at.min(to);
                let word =
                    text.get(start..at).ok_or_else(|| "a backslash before half a letter".to_owned())?;
                found.push((Token::Word(word.to_owned()), start..at));
                continue;
            }
        };
        at += 1;
        found.push((token, start..at));
    }
    Ok(found)
}

/// The directives between two places, without those in their blocks.
fn directives(text: &str, from: usize, to: usize) -> Result<Vec<Directive>, String> {
    let mut all = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut begin = None;
    let mut depth = 0;
    let mut inner = 0;
    for (token, range) in tokens(text, from, to)? {
        let start = *begin.get_or_insert(range.start);
        match token {
            Token::Word(word) if depth == 0 => words.push(word),
            Token::End if depth == 0 => {
                all.push(Directive {
                    words: std::mem::take(&mut words),
                    range: start..range.end,
                    block: None,
                });
                begin = None;
            }
            Token::Open => {
                if depth == 0 {
                    inner = range.end;
                }
                depth += 1;
            }
            Token::Close if depth == 0 => return Err("a } that closes nothing".to_owned()),
            Token::Close => {
                depth -= 1;
                if depth == 0 {
                    all.push(Directive {
                        words: std::mem::take(&mut words),
                        range: start..range.end,
                        block: Some(inner..range.start),
                    });
                    begin = None;
                }
            }
            Token::Word(_) | Token::End => {}
        }
    }
    if depth > 0 {
        return Err("a { that is never closed".to_owned());
    }
    if begin.is_some() {
        return Err("a directive without ; at its end".to_owned());
    }
    Ok(all)
}

/// What there is in the `upstream` block of a pool.
struct Upstream {
    /// What is between its braces.
    block: Range<usize>,
    /// Every `server` line, with its node if it has one.
    servers: Vec<(Range<usize>, Option<Node>)>,
}

/// The pool's block; none if the text is about something else.
fn upstream(pool: &PoolName, text: &str) -> Result<Option<Upstream>, String> {
    let is_ours =
        |directive: &Directive| directive.words.len() == 2 && directive.words == ["upstream", pool.as_str()];
    let all = directives(text, 0, text.len())?;
    let mut blocks = all.iter().filter(|directive| is_ours(directive)).filter_map(|d| d.block.clone());
    let Some(block) = blocks.next() else { return Ok(None) };
    if blocks.next().is_some() {
        return Err(format!("upstream {pool} is there twice"));
    }
    let mut servers = Vec::new();
    for Directive { words, range, .. } in directives(text, block.start, block.end)? {
        if words.first().is_none_or(|word| word != "server") {
            continue;
        }
        let address = words.get(1).map(String::as_str).unwrap_or_default();
        let is_placeholder = words[1..].join(" ") == PLACEHOLDER;
        let node = if is_placeholder { None } else { Some(node(address)?) };
        servers.push((range, node));
    }
    Ok(Some(Upstream { block, servers }))
}

/// nginx takes port 80 when there is none.
fn node(address: &str) -> Result<Node, String> {
    if address.starts_with("unix:") {
        return Err(format!("server {address} is no host:port, so it cannot be a node"));
    }
    let parsed = address.parse::<Node>().or_else(|error| format!("{address}:80").parse().map_err(|_| error));
    parsed.map_err(|error| error.to_string())
}

/// The pool's nodes; none if the text is about something else.
pub(super) fn parse(pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
    let found = upstream(pool, text)?;
    Ok(found.map(|found| found.servers.into_iter().filter_map(|(_, node)| node).collect()))
}

/// The pool's file.
pub(super) fn render(pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
    let found = match old {
        Some(old) => upstream(pool, old)?.map(|found| (old, found)),
        None => None,
    };
    let Some((old, found)) = found else {
        return Ok(format!("upstream {pool} {{\n{}}}\n", lines(nodes.iter(), nodes.is_empty())));
    };
    // Everything but the lines of nodes that go, line ends included, and then the new ones after the last that stays.
    let mut text = String::new();
    let mut copied = 0;
    let mut insert = None;
    let mut kept = Vec::new();
    for (range, node) in &found.servers {
        let is_kept = node.as_ref().is_some_and(|node| nodes.contains(node) && !kept.contains(&node));
        if is_kept {
            kept.extend(node);
            text += &old[copied..range.end];
            copied = range.end;
            insert = Some(text.len());
        } else {
            let gone = whole_line(old, range, copied.max(found.block.start));
            text += &old[copied..gone.start];
            copied = gone.end;
            insert = insert.or(Some(text.len()));
        }
    }
    let new = nodes.iter().filter(|node| !kept.contains(node));
    let new = lines(new, nodes.is_empty());
    // Nobody wrote a server into it yet: they come first.
    let insert = insert.unwrap_or_else(|| {
        text += &old[copied..found.block.start];
        copied = found.block.start;
        text.len()
    });
    text += &old[copied..];
    if !new.is_empty() {
        // After a server's `;` the rest of its line, with a comment perhaps, comes first.
        let is_line_start = text[..insert].ends_with('\n');
        let line_end = text[insert..].find('\n').map(|end| insert + end + 1);
        let rest_is_harmless = line_end.is_some_and(|end| {
            let rest = text[insert..end].trim();
            rest.is_empty() || rest.starts_with('#')
        });
        match line_end {
            _ if is_line_start => text.insert_str(insert, &new),
            Some(end) if rest_is_harmless => text.insert_str(end, &new),
            _ => text.insert_str(insert, &format!("\n{new}")),
        }
    }
    Ok(text)
}

fn lines<'a>(nodes: impl Iterator<Item = &'a Node>, is_empty: bool) -> String {
    if is_empty {
        return format!("  server {PLACEHOLDER};\n");
    }
    nodes.map(|node| format!("  server {node};\n")).collect()
}

/// The directive with its line, if nothing else is on it but blanks and a comment.
fn whole_line(text: &str, range: &Range<usize>, from: usize) -> Range<usize> {
    let start = text[from..range.start].rfind('\n').map_or(from, |at| from + at + 1);
    let is_first = text[start..range.start].trim().is_empty() && start > 0 && text[..start].ends_with('\n');
    let rest = &text[range.end..];
    let (line, end) = rest.find('\n').map_or((rest, None), |at| (&rest[..at], Some(range.end + at + 1)));
    match end {
        Some(end) if is_first && (line.trim().is_empty() || line.trim_start().starts_with('#')) => start..end,
        _ => range.clone(),
    }
}

/// The pool's nodes as nginx shows them among the whole of its configuration; none if it is not there, or twice.
pub(super) fn find(pool: &PoolName, configuration: &str) -> Option<Vec<Node>> {
    let mut found = None;
    let mut rest = configuration;
    while !rest.is_empty() {
        let end = next_file(rest);
        let (text, after) = rest.split_at(end);
        // Most files are about something else; reading all of them for each pool would take long.
        if text.contains("upstream")
            && text.contains(pool.as_str())
            && let Ok(Some(nodes)) = parse(pool, text)
        {
            if found.is_some() {
                return None;
            }
            found = Some(nodes);
        }
        rest = after;
    }
    found
}

/// Where the next file of what nginx shows begins, which is a line such as `# configuration file /etc/nginx/nginx.conf:`;
/// the first line is that of this one.
fn next_file(shown: &str) -> usize {
    let mut marks = shown.match_indices("\n# configuration file /").map(|(at, _)| at + 1);
    let is_mark = |at: &usize| shown[*at..].lines().next().is_some_and(|line| line.ends_with(':'));
    marks.find(is_mark).unwrap_or(shown.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolName {
        "my_app".parse().unwrap()
    }

    fn nodes(addresses: &[&str]) -> Vec<Node> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn the_file_is_as_the_manual_shows_it() {
        let two = nodes(&["host3.my-squad.somewhere.com:5010", "host7.my-squad.somewhere.com:5011"]);
        let text = render(&pool(), &two, None).unwrap();
        assert_eq!(
            text,
            "upstream my_app {\n  server host3.my-squad.somewhere.com:5010;\n  \
             server host7.my-squad.somewhere.com:5011;\n}\n"
        );
        assert_eq!(parse(&pool(), &text), Ok(Some(two)));
        let empty = render(&pool(), &[], None).unwrap();
        assert_eq!(empty, "upstream my_app {\n  server 127.0.0.1:1 down;\n}\n");
        assert_eq!(parse(&pool(), &empty), Ok(Some(Vec::new())));
        let v6 = nodes(&["[::1]:80"]);
        assert_eq!(parse(&pool(), &render(&pool(), &v6, None).unwrap()), Ok(Some(v6)));
    }

    #[test]
    fn what_the_published_client_wrote_is_read() {
        let theirs = "\nupstream my_app {\n  server h1:5000;\n  server h2:5001;\n}\n";
        assert_eq!(parse(&pool(), theirs), Ok(Some(nodes(&["h1:5000", "h2:5001"]))));
        let text = render(&pool(), &nodes(&["h2:5001", "h3:1"]), Some(theirs)).unwrap();
        assert_eq!(text, "\nupstream my_app {\n  server h2:5001;\n  server h3:1;\n}\n");
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let old = "# by hand\nmap $a $b { default 1; }\nupstream \"my_app\" {\n  least_conn; # fewest\n  \
             server h1:1 weight=2 max_fails=3; # the big one\n\tserver h2:2 backup;\n  keepalive 16;\n}\n\
             upstream other { server h9:9; }\n";
        assert_eq!(parse(&pool(), old), Ok(Some(nodes(&["h1:1", "h2:2"]))));
        let same = render(&pool(), &nodes(&["h1:1", "h2:2"]), Some(old)).unwrap();
        assert_eq!(same, old);
        let swapped = render(&pool(), &nodes(&["h1:1", "h3:3"]), Some(old)).unwrap();
        assert_eq!(swapped, old.replace("\tserver h2:2 backup;\n", "  server h3:3;\n"));
        let none = render(&pool(), &[], Some(old)).unwrap();
        assert!(
            none.contains("  least_conn; # fewest\n  server 127.0.0.1:1 down;\n  keepalive 16;\n}"),
            "{none}"
        );
        assert_eq!(parse(&pool(), &none), Ok(Some(Vec::new())));
        let back = render(&pool(), &nodes(&["h4:4"]), Some(&none)).unwrap();
        assert_eq!(back, none.replace("server 127.0.0.1:1 down;", "server h4:4;"));
    }

    #[test]
    fn blocks_of_any_shape_are_changed() {
        for old in [
            "upstream my_app { server h1:1; server h2:2; }",
            "upstream my_app{server h1:1;server h2:2;}",
            "upstream my_app\n{\nserver h1:1 weight=\"2\"; server h2:2;\n}",
            "upstream my_app { zone x 64k; }",
            "upstream my_app {}\n",
            "upstream my_app { server h2:2; # a; } comment {\n server h2:2;\n}\n",
        ] {
            for wanted in [&["h2:2"][..], &["h3:3", "h4:4"], &["h1:1", "h2:2", "h3:3"], &[]] {
                let mut wanted = nodes(wanted);
                let text = render(&pool(), &wanted, Some(old)).unwrap();
                let mut found = parse(&pool(), &text).unwrap().unwrap();
                found.sort();
                wanted.sort();
                assert_eq!(found, wanted, "{old:?} became {text:?}");
                assert_eq!(text.contains("zone x 64k;"), old.contains("zone x 64k;"));
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is_broken() {
        assert_eq!(parse(&pool(), "server { listen 80; }"), Ok(None));
        assert_eq!(parse(&pool(), "upstream other { server h:1; }"), Ok(None));
        assert_eq!(parse(&pool(), "# upstream my_app { server h:1; }\n"), Ok(None));
        for broken in [
            "upstream my_app { server h:1; ",
            "upstream my_app { server h:1 }",
            "upstream my_app { server \"h:1; }",
            "}",
            "upstream my_app { server unix:/run/x.sock; }",
            "upstream my_app { server; }",
            "upstream my_app { server h:1; } upstream my_app { server h:2; }",
            "upstream my_app { server \\",
            "upstream my_app { server \\é; }",
        ] {
            assert!(parse(&pool(), broken).is_err(), "{broken:?}");
            assert!(render(&pool(), &nodes(&["h:1"]), Some(broken)).is_err(), "{broken:?}");
        }
        assert_eq!(parse(&pool(), "upstream my_app { server h; }"), Ok(Some(nodes(&["h:80"]))));
    }

    #[test]
    fn a_pool_is_found_in_what_nginx_shows() {
        let shown = "# configuration file /etc/nginx/nginx.conf:\nhttp { include x/*.conf; }\n\n\
             # configuration file /etc/nginx/x/my_app.conf:\nupstream my_app {\n  server h:1;\n}\n\n";
        assert_eq!(find(&pool(), shown), Some(nodes(&["h:1"])));
        assert_eq!(find(&"other".parse().unwrap(), shown), None);
        assert_eq!(find(&pool(), &[shown, shown].concat()), None);
        let remark = shown.replace("upstream", "# configuration file of my app, by hand\nupstream");
        assert_eq!(find(&pool(), &remark), Some(nodes(&["h:1"])));
        assert_eq!(find(&pool(), &format!("{shown}# configuration file ends here")), Some(nodes(&["h:1"])));
    }
}
