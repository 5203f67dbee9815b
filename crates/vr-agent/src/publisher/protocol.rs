//! Supervisor's event listener protocol, over standard input and output.
//!
//! Every event is accepted as soon as it is read: whether it could be published is not Supervisor's business.
//! This module must not know what events mean.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

use jiff::Timestamp;
use thiserror::Error;
use tracing::warn;

/// The longest header line, in bytes.
const MAX_HEADER: u64 = 8 * 1024;
/// Payloads of more bytes are read and forgotten.
const MAX_PAYLOAD: u64 = 1 << 20;

/// What Supervisor told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Such as `PROCESS_STATE_RUNNING`.
    pub name: String,
    /// The `key:value` pairs of the payload's first line.
    pub payload_headers: BTreeMap<String, String>,
    /// The payload after its first line.
    pub payload_data: String,
    /// When it was read.
    pub arrived: Timestamp,
}

/// Why the protocol cannot go on.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// A header that is none, or an event that ends in the middle.
    #[error("not an event of Supervisor: {problem}")]
    NotAnEvent {
        /// What was expected, and what was found.
        problem: String,
    },
    /// The pipes broke.
    #[error("cannot {0}")]
    Pipe(&'static str, #[source] io::Error),
}

fn not_an_event(problem: impl Into<String>) -> ProtocolError {
    ProtocolError::NotAnEvent { problem: problem.into() }
}

/// Takes events until the input ends, or nobody reads the output any more.
///
/// # Errors
/// [`ProtocolError`]; what follows on the input cannot be understood.
pub fn serve(
    mut input: impl BufRead,
    mut output: impl Write,
    mut take: impl FnMut(Event),
) -> Result<(), ProtocolError> {
    let mut say = |text: &str| match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(ProtocolError::Pipe("answer on standard output", e)),
    };
    while say("READY\n")? {
        let Some(event) = read_event(&mut input)? else { break };
        take(event);
        if !say("RESULT 2\nOK")? {
            break;
        }
    }
    Ok(())
}

/// One event, or nothing at the end of the input.
fn read_event(input: &mut impl BufRead) -> Result<Option<Event>, ProtocolError> {
    let failed = |e| ProtocolError::Pipe("read an event from standard input", e);
    let mut line = Vec::new();
    input.by_ref().take(MAX_HEADER).read_until(b'\n', &mut line).map_err(failed)?;
    if line.is_empty() {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&line);
    let Some(line) = line.strip_suffix('\n') else {
        return Err(not_an_event(format!("a header line of {} bytes without an end", line.len())));
    };
    // Supervisor 4 counts a payload's characters and sends its bytes, so some of them may still lie before.
    let start = line.find("ver:").ok_or_else(|| {
        not_an_event(format!(
            "expected a header with ver:, found {:?}",
            line.chars().take(80).collect::<String>()
        ))
    })?;
    if start > 0 {
        warn!(bytes = start, "skipped what the last event's length left out");
    }
    let headers = pairs(&line[start..]);
    let name = headers.get("eventname").cloned().ok_or_else(|| not_an_event("a header without eventname"))?;
    let length: u64 = headers
        .get("len")
        .and_then(|length| length.parse().ok())
        .ok_or_else(|| not_an_event("a header without len, a number of bytes"))?;

    let mut payload = Vec::new();
    let mut source = input.take(length);
    let got = if length > MAX_PAYLOAD {
        warn!(event = name, bytes = length, "the payload is too long and was not looked at");
        io::copy(&mut source, &mut io::sink()).map_err(failed)?
    } else {
        source.read_to_end(&mut payload).map_err(failed)? as u64
    };
    if got < length {
        return Err(not_an_event(format!("it ends after {got} of {length} bytes of a payload")));
    }
    let payload = String::from_utf8_lossy(&payload);
    let (first, data) = payload.split_once('\n').unwrap_or((&payload, ""));
    Ok(Some(Event {
        name,
        payload_headers: pairs(first),
        payload_data: data.to_owned(),
        arrived: Timestamp::now(),
    }))
}

fn pairs(line: &str) -> BTreeMap<String, String> {
    let pairs = line.split_whitespace().filter_map(|pair| pair.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, payload: &str, length: usize) -> String {
        format!(
            "ver:3.0 server:supervisor serial:21 pool:proc_publisher poolserial:10 eventname:{name} len:{length}\n{payload}"
        )
    }

    fn served(input: &[u8]) -> (Result<(), String>, String, Vec<Event>) {
        let (mut output, mut events) = (Vec::new(), Vec::new());
        let result = serve(input, &mut output, |event| events.push(event));
        (result.map_err(|e| e.to_string()), String::from_utf8(output).unwrap(), events)
    }

    #[test]
    fn each_event_is_answered_and_taken_apart() {
        let state = "processname:cat groupname:cats from_state:STOPPED tries:0";
        let log = "processname:cat groupname:cats pid:5 channel:stdout\nline: 1\nline 2";
        let input = event("PROCESS_STATE_STARTING", state, state.len())
            + &event("PROCESS_LOG_STDOUT", log, log.len())
            + &event("TICK_60", "when:1", 6);
        let (result, output, events) = served(input.as_bytes());
        assert_eq!(result, Ok(()));
        assert_eq!(output, "READY\nRESULT 2\nOKREADY\nRESULT 2\nOKREADY\nRESULT 2\nOKREADY\n");
        let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
        assert_eq!(names, ["PROCESS_STATE_STARTING", "PROCESS_LOG_STDOUT", "TICK_60"]);
        assert_eq!(events[0].payload_headers["groupname"], "cats");
        assert_eq!((events[0].payload_headers.len(), events[0].payload_data.as_str()), (4, ""));
        assert_eq!(events[1].payload_data, "line: 1\nline 2");
    }

    #[test]
    fn bytes_that_supervisor_did_not_count_are_skipped() {
        let payload = "processname:münze groupname:münze pid:42";
        let input =
            event("PROCESS_STATE_RUNNING", payload, payload.chars().count()) + &event("TICK_60", "when:1", 6);
        let (result, _, events) = served(input.as_bytes());
        assert_eq!((result, events.len()), (Ok(()), 2));
        assert_eq!(events[0].payload_headers["groupname"], "münze");
        assert_eq!(events[1].payload_headers["when"], "1");
    }

    #[test]
    fn a_payload_that_is_too_long_is_read_and_forgotten() {
        let long = "x".repeat(MAX_PAYLOAD as usize + 1);
        let input = event("PROCESS_COMMUNICATION", &long, long.len()) + &event("TICK_60", "when:1", 6);
        let (result, _, events) = served(input.as_bytes());
        assert_eq!((result, events.len()), (Ok(()), 2));
        assert!(events[0].payload_data.is_empty() && events[0].payload_headers.is_empty());
    }

    #[test]
    fn what_is_no_event_ends_the_talk() {
        for (input, expected) in [
            ("hello\n".to_owned(), "expected a header with ver:, found \"hello\""),
            ("ver:3.0 len:0\n".to_owned(), "a header without eventname"),
            ("ver:3.0 eventname:X len:-1\n".to_owned(), "a header without len"),
            ("ver:3.0 eventname:X".to_owned(), "a header line of 19 bytes without an end"),
            ("x".repeat(100_000), "a header line of 8192 bytes without an end"),
            (event("X", "ab", 3), "it ends after 2 of 3 bytes"),
        ] {
            let (result, output, events) = served(input.as_bytes());
            assert!(result.unwrap_err().contains(expected), "{expected}");
            assert_eq!((output.as_str(), events.len()), ("READY\n", 0));
        }
    }

    #[test]
    fn a_supervisor_that_does_not_listen_any_more_is_gone() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(serve(&b""[..], Closed, |_| {}).is_ok());
    }
}
