//! What a bare (unquoted) word means in YAML 1.1, as PyYAML reads it, and which words no reader takes for
//! anything but a text. Must not know of documents or of files.

use serde_yaml::{Number, Value};

/// What PyYAML makes of a bare word. Dates stay texts: no format of ours has a type for them.
///
/// `None`: an integer that 64 bits cannot hold.
pub(super) fn resolve(word: &str) -> Option<Value> {
    match word {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Some(true.into()),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Some(false.into());
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(f64::INFINITY.into()),
        "-.inf" | "-.Inf" | "-.INF" => return Some(f64::NEG_INFINITY.into()),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN.into()),
        _ => {}
    }
    if !word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Some(word.into());
    }
    if let Some(magnitude) = magnitude(unsigned(word)) {
        return integer(magnitude?, word.starts_with('-')).map(Value::Number);
    }
    Some(float(word).map_or_else(|| word.into(), Value::from))
}

/// Whether a bare word is a text to every reader: YAML 1.1 and 1.2, PyYAML, libyaml, Psych, and JSON's.
/// In doubt it is not.
pub(super) fn is_always_text(word: &str) -> bool {
    const WORDS: [&str; 14] =
        ["", "~", "null", "y", "n", "yes", "no", "on", "off", "true", "false", "=", "<<", "nan"];
    let lower = word.to_ascii_lowercase();
    let bare = lower.strip_prefix(['+', '-']).unwrap_or(&lower);
    let bare = bare.strip_prefix('.').unwrap_or(bare);
    if WORDS.contains(&lower.as_str()) || matches!(bare, "inf" | "infinity" | "nan") {
        return false;
    }
    !is_like_a_number(&lower) && !begins_like_a_date(&lower)
}

fn unsigned(word: &str) -> &str {
    word.strip_prefix(['+', '-']).unwrap_or(word)
}

/// An integer's absolute value: `None` when the word is no integer, `Some(None)` when it is too large.
fn magnitude(word: &str) -> Option<Option<u64>> {
    let all = |text: &str, digit: fn(char) -> bool| text.chars().all(|c| c == '_' || digit(c));
    let read = |text: &str, base| u64::from_str_radix(&text.replace('_', ""), base).ok();
    let has_digits = |text: &str| text.contains(|c: char| c != '_');
    if let Some(digits) = word.strip_prefix("0b") {
        return (has_digits(digits) && all(digits, |c| c.is_digit(2))).then(|| read(digits, 2));
    }
    if let Some(digits) = word.strip_prefix("0x") {
        return (has_digits(digits) && all(digits, |c| c.is_ascii_hexdigit())).then(|| read(digits, 16));
    }
    if word.starts_with('0') {
        return all(word, |c| c.is_digit(8)).then(|| read(word, 8));
    }
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (first, sixties) = match word.split_once(':') {
        None => return all(word, |c| c.is_ascii_digit()).then(|| read(word, 10)),
        Some(parts) => parts,
    };
    if !all(first, |c| c.is_ascii_digit()) || !sixties.split(':').all(is_sixtieth) {
        return None;
    }
    let place = |sum: u64, text: &str| sum.checked_mul(60)?.checked_add(text.parse().ok()?);
    Some(read(first, 10).and_then(|first| sixties.split(':').try_fold(first, place)))
}

/// `0` to `59`, or `00` to `59`.
fn is_sixtieth(text: &str) -> bool {
    match text.as_bytes() {
        [ones] => ones.is_ascii_digit(),
        [tens, ones] => (b'0'..=b'5').contains(tens) && ones.is_ascii_digit(),
        _ => false,
    }
}

fn integer(magnitude: u64, is_negative: bool) -> Option<Number> {
    match is_negative {
        false => Some(magnitude.into()),
        true => 0_i64.checked_sub_unsigned(magnitude).map(Number::from),
    }
}

fn float(word: &str) -> Option<f64> {
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '_');
    let (whole, rest) = word.split_once('.')?;
    if let Some((first, sixties)) = unsigned(whole).split_once(':') {
        let begins_with_digit = first.starts_with(|c: char| c.is_ascii_digit());
        if !begins_with_digit || !digits(first) || !sixties.split(':').all(is_sixtieth) || !digits(rest) {
            return None;
        }
        let part = |text: &str| text.replace('_', "").parse::<f64>().ok();
        let whole_value =
            sixties.split(':').try_fold(part(first)?, |sum, text| Some(sum * 60.0 + part(text)?))?;
        let value = whole_value + part(&format!("0.{rest}"))?;
        return Some(if word.starts_with('-') { -value } else { value });
    }
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    // Without its sign, an exponent makes the word a text: `1.5e3`.
    let exponent_is_fine = exponent.is_none_or(|exponent| {
        let power = unsigned(exponent);
        power.len() + 1 == exponent.len() && !power.is_empty() && power.bytes().all(|b| b.is_ascii_digit())
    });
    let starts_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let mantissa_is_fine = match whole {
        "" => starts_with_digit(fraction),
        _ => starts_with_digit(unsigned(whole)) && digits(unsigned(whole)),
    };
    if !mantissa_is_fine || !digits(fraction) || !exponent_is_fine {
        return None;
    }
    word.replace('_', "").parse().ok()
}

/// Digits with all that somebody's numbers may have between them; `lower` is in lower case.
fn is_like_a_number(lower: &str) -> bool {
    let bare = unsigned(lower);
    // PyYAML stumbles over `0x_`, which it takes for a number before it looks at its digits.
    let separator = |c: char| c == '_' || c == ',';
    for prefix in ["0x", "0o", "0b"] {
        let all = |digits: &str| digits.chars().all(|c| c.is_ascii_hexdigit() || separator(c));
        if bare.strip_prefix(prefix).is_some_and(all) {
            return true;
        }
    }
    let decimal = |text: &str| {
        text.contains(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_digit() || separator(c))
    };
    let (mantissa, exponent) = match bare.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, Some(unsigned(exponent))),
        None => (bare, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    // Also none at all: `4.` and `4._` are numbers.
    let or_none = |text: &str| text.chars().all(|c| c.is_ascii_digit() || separator(c));
    let whole_is_fine = whole.is_empty() || whole.split(':').all(decimal);
    let has_digits = mantissa.contains(|c: char| c.is_ascii_digit());
    has_digits && whole_is_fine && fraction.is_none_or(or_none) && exponent.is_none_or(or_none)
}

/// Four digits, a dash, a digit: every form of date that any reader knows begins like this.
fn begins_like_a_date(word: &str) -> bool {
    matches!(word.as_bytes(), [a, b, c, d, b'-', e, ..] if [a, b, c, d, e].iter().all(|x| x.is_ascii_digit()))
}
