//! What is published and cached: the texts, byte for byte as other programs read them.
//!
//! This module must not know how they get to Redis.

use redis::Pipeline;
use serde_json::{Value, json};
use vr_common::hash::python_json;
use vr_common::names::ParsedProcName;
use vr_common::supervisor::ProcessInfo;

use super::protocol::Event;

/// Where proc events are published.
pub const CHANNEL: &str = "proc_events";
/// How long a host's cache is good for without news, in seconds.
pub const CACHE_SECONDS: u32 = 600;

/// What an event is to be answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A process changed its state; Supervisor knows it under this name, `group:process` or `process`.
    State {
        /// The name.
        process: String,
    },
    /// A group of processes, for us one proc, is gone.
    Removed {
        /// The group.
        group: String,
    },
    /// Nothing but a look at the host.
    Other,
}

/// Tells what an event means.
pub fn kind(event: &Event) -> Kind {
    let header = |name| event.payload_headers.get(name).cloned();
    if event.name.starts_with("PROCESS_STATE")
        && let Some(process) = header("processname")
    {
        return Kind::State {
            process: match header("groupname") {
                Some(group) if group != process => format!("{group}:{process}"),
                _ => process,
            },
        };
    }
    match header("groupname") {
        Some(group) if event.name == "PROCESS_GROUP_REMOVED" => Kind::Removed { group },
        _ => Kind::Other,
    }
}

/// The message of a process that changed its state.
///
/// # Errors
/// None that occur: the document is made of texts and numbers.
pub fn state_message(event: &str, info: &ProcessInfo, host: &str) -> Result<String, serde_json::Error> {
    let mut message = serde_json::to_value(info.document(host))?;
    message["event"] = Value::from(event);
    Ok(python_json(&message))
}

/// The message of a group that is gone.
pub fn removed_message(event: &Event, group: &str, host: &str) -> String {
    let parsed = ParsedProcName::parse(group);
    python_json(&json!({
        "event": event.name,
        "host": host,
        "payload_headers": event.payload_headers,
        "payload_data": event.payload_data,
        // UTC, as the published listener writes it: without saying so.
        "time": event.arrived.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string(),
        "name": group,
        "id": format!("{host}-{group}"),
        "app_name": parsed.app_name,
        "version": parsed.version,
        "config_name": parsed.config_name,
        "hash": parsed.hash,
        "proc_name": parsed.proc_name,
        "port": parsed.port,
    }))
}

/// The transaction that replaces a host's cache.
///
/// # Errors
/// None that occur: infos are made of texts and numbers.
pub fn cache_refresh(host: &str, infos: &[ProcessInfo]) -> Result<Pipeline, serde_json::Error> {
    let key = format!("host_procs:{host}");
    let mut pipeline = Pipeline::new();
    pipeline.atomic().cmd("DEL").arg(&key).ignore();
    // A hash without fields is no hash.
    if !infos.is_empty() {
        pipeline.cmd("HMSET").arg(&key);
        for info in infos {
            pipeline.arg(&info.name).arg(python_json(&serde_json::to_value(info)?));
        }
        pipeline.ignore().cmd("EXPIRE").arg(&key).arg(CACHE_SECONDS).ignore();
    }
    Ok(pipeline)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use redis::Arg;

    use super::*;
    use crate::publisher::protocol::serve;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../vr-common/tests/data/vectors.json")).unwrap()
    }

    fn infos() -> Vec<ProcessInfo> {
        let infos = vectors()["supervisor_process_info"].as_object().unwrap().clone();
        infos.into_iter().map(|(_, info)| serde_json::from_value(info).unwrap()).collect()
    }

    fn event(name: &str, payload: &str) -> Event {
        let input = format!("ver:3.0 eventname:{name} len:{}\n{payload}", payload.len());
        let mut events = Vec::new();
        serve(input.as_bytes(), Vec::new(), |event| events.push(event)).unwrap();
        events.remove(0)
    }

    /// What the worker publishes for an event, Supervisor's answers being those of the vectors.
    fn published(event: &Event) -> Vec<String> {
        match kind(event) {
            Kind::State { process } => {
                let info = infos().into_iter().find(|info| info.name == process).unwrap();
                vec![state_message(&event.name, &info, "somewhere").unwrap()]
            }
            Kind::Removed { group } => vec![removed_message(event, &group, "somewhere")],
            Kind::Other => vec![],
        }
    }

    #[test]
    fn messages_of_the_vectors() {
        let mut seen = 0;
        for case in vectors()["proc_publisher"].as_array().unwrap() {
            let name = case["eventname"].as_str().unwrap();
            let mut event = event(name, case["payload"].as_str().unwrap());
            let expected = case["published"].as_array().unwrap();
            if let Some(time) = expected.first().and_then(|first| first["message"]["time"].as_str()) {
                event.arrived = format!("{time}Z").parse::<Timestamp>().unwrap();
            }
            let messages: Vec<Value> =
                published(&event).iter().map(|text| serde_json::from_str(text).unwrap()).collect();
            let expected: Vec<_> = expected
                .iter()
                .inspect(|one| assert_eq!(one["channel"], CHANNEL))
                .map(|one| one["message"].clone())
                .collect();
            assert_eq!(messages, expected, "{name}");
            seen += 1;
        }
        assert_eq!(seen, 5);
    }

    /// The commands as the vectors write them: names in lower case, a hash's fields as an object.
    fn commands(pipeline: &Pipeline) -> Vec<Value> {
        let mut commands = Vec::new();
        for command in pipeline.cmd_iter() {
            let words: Vec<String> = command
                .args_iter()
                .map(|word| match word {
                    Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                    other => panic!("{other:?}"),
                })
                .collect();
            let name = words[0].to_lowercase().replace("del", "delete");
            commands.push(if name == "hmset" {
                let fields: serde_json::Map<_, Value> = words[2..]
                    .chunks(2)
                    .map(|field| (field[0].clone(), serde_json::from_str(&field[1]).unwrap()))
                    .collect();
                json!([name, words[1], fields])
            } else {
                let mut shown = vec![name];
                shown.extend_from_slice(&words[1..]);
                json!(shown)
            });
        }
        assert!(pipeline.is_transaction());
        commands.push(json!(["execute"]));
        commands
    }

    /// The published listener refreshes twice where once will do; each time is the same.
    #[test]
    fn cache_refreshes_of_the_vectors() {
        let refresh = commands(&cache_refresh("somewhere", &infos()).unwrap());
        for case in vectors()["proc_publisher"].as_array().unwrap() {
            let calls = case["cache_calls"].as_array().unwrap();
            assert!(!calls.is_empty());
            for expected in calls.chunks(refresh.len()) {
                assert_eq!(refresh, expected, "{}", case["eventname"]);
            }
        }
    }

    #[test]
    fn a_host_without_processes_has_no_cache() {
        assert_eq!(
            commands(&cache_refresh("h", &[]).unwrap()),
            [json!(["delete", "host_procs:h"]), json!(["execute"])]
        );
    }

    #[test]
    fn a_process_of_another_group_is_asked_for_by_both_names() {
        let given = event("PROCESS_STATE_FATAL", "processname:web_1 groupname:web from_state:BACKOFF");
        assert_eq!(kind(&given), Kind::State { process: "web:web_1".into() });
        assert_eq!(kind(&event("PROCESS_STATE_FATAL", "")), Kind::Other);
        assert_eq!(kind(&event("PROCESS_LOG_STDOUT", "processname:a groupname:a")), Kind::Other);
    }
}
