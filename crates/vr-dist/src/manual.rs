//! Manual pages, one for each command and subcommand.

use std::path::PathBuf;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::Program;

const FOLDER: &str = "share/man/man1";
/// The longest heading that our help texts have, in characters.
const LONGEST_HEADING: usize = 20;

/// A program's pages: their paths below a prefix, and what they hold.
pub fn pages(program: &Program) -> Vec<(PathBuf, Vec<u8>)> {
    let mut command = (program.command)().disable_help_subcommand(true);
    command.build();
    let mut found = Vec::new();
    add(&command, program.name, &mut found);
    found
}

fn add(command: &Command, name: &str, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        add(subcommand, &format!("{name}-{}", subcommand.get_name()), found);
    }
    found.push((PathBuf::from(format!("{FOLDER}/{name}.1")), page(command, name)));
}

/// The page of one command. What its help says below the options becomes sections of its own: in a paragraph, as
/// it would otherwise be, the lines of examples would run together.
fn page(command: &Command, name: &str) -> Vec<u8> {
    let version = command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(format!("Velociraptor {version}"));
    let help = command.get_after_long_help().or_else(|| command.get_after_help());
    let blocks = help.map(|help| blocks(&help.to_string())).unwrap_or_default();
    let (sections, prose): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.heading.is_some());

    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _ = man.render_title(&mut text);
    let _ = man.render_name_section(&mut text);
    let _ = man.render_synopsis_section(&mut text);
    let _ = man.render_description_section(&mut text);
    text.extend(rendered(&prose));
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        let _ = man.render_options_section(&mut text);
    }
    if command.get_subcommands().any(|subcommand| !subcommand.is_hide_set()) {
        let _ = man.render_subcommands_section(&mut text);
    }
    text.extend(rendered(&sections));
    text
}

/// Some lines of a help text between empty ones.
#[derive(Debug, PartialEq)]
struct Block {
    heading: Option<String>,
    lines: Vec<String>,
    /// Whether the lines stay as they are.
    fixed: bool,
}

fn blocks(help: &str) -> Vec<Block> {
    let texts = help.split("\n\n").filter(|text| !text.trim().is_empty());
    texts
        .map(|text| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let heading = lines.first().and_then(|line| heading(line)).map(str::to_owned);
            if let Some(heading) = &heading {
                let rest = lines[0][heading.len() + 1..].trim_start().to_owned();
                match rest.is_empty() {
                    true => drop(lines.remove(0)),
                    false => lines[0] = rest,
                }
            }
            let fixed = lines.iter().any(|line| line.starts_with(' '));
            for line in &mut lines {
                *line = line.strip_prefix("  ").unwrap_or(line).to_owned();
            }
            Block { heading, lines, fixed }
        })
        .collect()
}

/// A few words and a colon at the beginning of a line.
fn heading(line: &str) -> Option<&str> {
    let (words, rest) = line.split_once(':')?;
    let is_heading = words.len() <= LONGEST_HEADING
        && words.starts_with(char::is_uppercase)
        && words.chars().all(|c| c.is_alphabetic() || c == ' ')
        && (rest.is_empty() || rest.starts_with(' '));
    is_heading.then_some(words)
}

fn rendered(blocks: &[Block]) -> Vec<u8> {
    let mut roff = Roff::new();
    for block in blocks {
        match &block.heading {
            Some(heading) => roff.control("SH", [heading.to_uppercase().as_str()]),
            None => roff.control("PP", []),
        };
        if block.fixed {
            roff.control("nf", []);
        }
        for line in &block.lines {
            roff.text([roman(line)]);
        }
        if block.fixed {
            roff.control("fi", []);
        }
    }
    roff.to_roff().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROGRAMS;

    #[test]
    fn each_page_names_its_subcommands_and_each_of_them_has_a_page() {
        for program in &PROGRAMS {
            let pages = pages(program);
            let page = |name: &str| {
                let path = PathBuf::from(format!("{FOLDER}/{name}.1"));
                let found = pages.iter().find(|(page, _)| *page == path);
                // Hyphens and apostrophes are written so that they stay what they are.
                found.map(|(_, text)| {
                    String::from_utf8(text.clone()).unwrap().replace("\\-", "-").replace("\\*(Aq", "'")
                })
            };
            let own = page(program.name).unwrap();
            assert!(own.contains(&format!(".TH {} 1", program.name)), "{own}");
            let command = (program.command)();
            for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let name = format!("{}-{}", program.name, subcommand.get_name());
                assert!(own.contains(&name), "{name} is not in {own}");
                let about = subcommand.get_about().unwrap().to_string();
                let about = about.lines().next().unwrap().to_owned();
                assert!(page(&name).unwrap().contains(&about), "{name}");
            }
        }
    }

    #[test]
    fn every_parser_is_consistent_and_explains_itself() {
        fn explained(command: &Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(explained);
        }
        for program in &PROGRAMS {
            let command = (program.command)();
            assert_eq!(command.get_name(), program.name);
            explained(&command);
            command.debug_assert();
        }
    }

    #[test]
    fn help_becomes_sections() {
        let help = "Some prose\nof two lines.\n\nExamples:\n  do a\n  do b   now\n\nExit status: 0 done, 1\nnot.\n\n\
                    Prints {\"a\": 1}.";
        let block = |heading: Option<&str>, lines: &[&str], fixed| Block {
            heading: heading.map(str::to_owned),
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            fixed,
        };
        let expected = [
            block(None, &["Some prose", "of two lines."], false),
            block(Some("Examples"), &["do a", "do b   now"], true),
            block(Some("Exit status"), &["0 done, 1", "not."], false),
            block(None, &["Prints {\"a\": 1}."], false),
        ];
        assert_eq!(blocks(help), expected);
        let roff = String::from_utf8(rendered(&expected[1..2])).unwrap();
        assert!(roff.ends_with(".SH EXAMPLES\n.nf\ndo a\ndo b   now\n.fi\n"), "{roff}");
    }
}
