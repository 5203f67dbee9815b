//! Changing a part of a text that people wrote, and nothing else of it.

use std::ops::Range;

/// The text with these parts of it replaced, which are in their order and do not overlap.
pub(crate) fn splice(text: &str, parts: &[(Range<usize>, String)]) -> String {
    let mut all = String::new();
    let mut copied = 0;
    for (range, new) in parts {
        all += &text[copied..range.start];
        all += new;
        copied = range.end;
    }
    all + &text[copied..]
}

/// Where the line ends that this place is in, its newline included.
pub(crate) fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1)
}
