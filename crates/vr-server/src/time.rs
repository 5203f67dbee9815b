//! Unix milliseconds, as the store keeps times, and ISO 8601, as everybody else reads them.

/// Unix milliseconds.
pub type Millis = i64;

/// Now.
pub fn now() -> Millis {
    jiff::Timestamp::now().as_millisecond()
}

/// ISO 8601 in UTC with milliseconds, such as `2026-01-31T12:00:00.000Z`.
pub fn iso(millis: Millis) -> String {
    match jiff::Timestamp::from_millisecond(millis) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => millis.to_string(),
    }
}
