//! Deployment events: what happened, told to people and programs.
//!
//! Formats: the page *Supervisor, events and caches* (vectors: `event_envelope`, `sse`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::hash::python_json;

/// The longest message that is kept whole, in characters.
pub const MAX_MESSAGE: usize = 10_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// ISO 8601, UTC.
    pub time: String,
    /// For people; at most [`MAX_MESSAGE`] characters, see [`snip`].
    pub message: String,
    /// Such as `swarm`, `failed`.
    pub tags: Vec<String>,
    /// A short heading.
    pub title: String,
    /// Such as `swarm_id`, the trace id of a dispatch, and `resource_uri`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Keeps both ends of a text that is too long.
pub fn snip(message: &str) -> String {
    let count = message.chars().count();
    if count <= MAX_MESSAGE {
        return message.to_owned();
    }
    const MARK: &str = "\n...<snip>...\n";
    let half = (MAX_MESSAGE - MARK.len()) / 2;
    let head: String = message.chars().take(half).collect();
    let tail: String = message.chars().skip(count - half).collect();
    head + MARK + &tail
}

/// An event on its way: its unique id and its JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Unique and, from one server, growing.
    pub id: String,
    /// JSON text of an [`Event`], or `flush`.
    pub data: String,
    /// The kind of message, for clients that listen to one kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
}

impl Envelope {
    /// The message as published to Redis, and as kept in its list.
    pub fn to_redis(&self) -> String {
        let text = |t: &str| python_json(&Value::from(t));
        let mut json = format!("{{\"id\": {}, \"data\": {}", text(&self.id), text(&self.data));
        if let Some(event) = &self.event {
            json += &format!(", \"event\": {}", text(event));
        }
        json + "}"
    }

    /// The message as a Server-Sent Event.
    pub fn to_sse(&self) -> String {
        let mut block = format!("id: {}\n", self.id);
        if let Some(event) = &self.event {
            block += &format!("event: {event}\n");
        }
        for line in self.data.split('\n') {
            block += &format!("data: {line}\n");
        }
        block + "\n"
    }
}

/// The comment that keeps a stream of Server-Sent Events alive.
pub const SSE_KEEP_ALIVE: &str = ":\n";

/// Reads a stream of Server-Sent Events, line by line.
#[derive(Debug, Default)]
pub struct SseReader {
    id: String,
    event: Option<String>,
    data: Vec<String>,
}

impl SseReader {
    /// Takes one line without its line end; gives a message when the line completes one.
    pub fn line(&mut self, line: &str) -> Option<Envelope> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            let event = self.event.take();
            return (!data.is_empty()).then(|| Envelope {
                id: self.id.clone(),
                data: data.join("\n"),
                event,
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut self.id),
            "event" => self.event = Some(value.to_owned()),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::tests::vectors;

    fn envelope(args: &Value) -> Envelope {
        Envelope {
            id: args["msgid"].as_str().unwrap().into(),
            data: args["data"].as_str().unwrap().into(),
            event: args["event"].as_str().map(Into::into),
        }
    }

    #[test]
    fn envelopes_of_the_vectors() {
        for case in vectors()["event_envelope"].as_array().unwrap() {
            assert_eq!(envelope(&case["args"]).to_redis(), case["redis"].as_str().unwrap());
        }
    }

    #[test]
    fn server_sent_events_of_the_vectors() {
        for case in vectors()["sse"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            if case["flush"] == Value::Bool(true) {
                assert_eq!(SSE_KEEP_ALIVE, text);
                continue;
            }
            let sent = envelope(&case["args"]);
            assert_eq!(sent.to_sse(), text);
            let mut reader = SseReader::default();
            let read: Vec<_> = text.split('\n').filter_map(|line| reader.line(line)).collect();
            assert_eq!(read, [sent]);
        }
    }

    #[test]
    fn long_messages_keep_both_ends() {
        let long = format!("begin{}end", "é".repeat(20_000));
        let short = snip(&long);
        assert!(short.chars().count() <= MAX_MESSAGE);
        assert!(short.starts_with("begin") && short.ends_with("end") && short.contains("...<snip>..."));
        assert_eq!(snip("short"), "short");
    }
}
