//! Redis: what `proc_publisher` and agents tell on the channel `proc_events` comes in, what the server sees goes out.
//!
//! What a host tells itself is not told once more. Redis is a convenience: without it, hosts are asked more often. Two threads, as the library blocks; each has its own
//! connection, and tries again for ever when that breaks. What cannot be sent in time is dropped, never kept without end.

use std::thread;
use std::time::{Duration, Instant};

use redis::{Client, Connection, ConnectionLike as _, RedisError};
use serde_json::Value;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use vr_common::host_api::{ProcChange, ProcDocument};

use super::fleet::{Fleet, FleetChange, REMOVED};

/// The channel of proc documents.
const CHANNEL: &str = "proc_events";
/// How long Redis may take to connect, and for each write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing may come before the connection is made anew, as it may have died unnoticed.
const SILENCE: Duration = Duration::from_secs(60);
/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long it must have worked for the next failure to be a new one.
const WORKED: Duration = Duration::from_secs(30);
/// The key of our messages that says which server they are of.
const TOLD_BY: &str = "told_by";
/// The longest message that is looked at, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// The two threads.
#[derive(Debug)]
pub struct PubSub {
    client: Client,
    /// Which server this is, as what it tells comes back to it.
    me: String,
}

impl PubSub {
    /// A client of Redis at `url`; nothing is connected yet.
    ///
    /// # Errors
    /// When it is no URL of Redis.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        Ok(Self { client: Client::open(url)?, me: uuid::Uuid::new_v4().to_string() })
    }

    /// Begins to listen and to tell; both end with the process.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self, fleet: &Fleet) -> std::io::Result<()> {
        let (listener, fleet_to_tell, me) = (self.client.clone(), fleet.clone(), self.me.clone());
        thread::Builder::new()
            .name("redis-in".into())
            .spawn(move || keep_trying("listen to", || listen(&listener, &fleet_to_tell, &me)))?;
        let changes = fleet.listen();
        thread::Builder::new()
            .name("redis-out".into())
            .spawn(move || tell(&self.client, changes, &self.me))?;
        Ok(())
    }
}

/// Does something that ends only when it fails, or when nothing came for a while.
fn keep_trying(doing: &str, mut work: impl FnMut() -> Result<(), RedisError>) {
    let mut pause = PAUSES.0;
    loop {
        let begun = Instant::now();
        match work() {
            Ok(()) => pause = PAUSES.0,
            Err(error) => {
                if begun.elapsed() > WORKED {
                    pause = PAUSES.0;
                }
                complain(doing, pause, &error);
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// Once for each time that Redis goes away.
fn complain(doing: &str, pause: Duration, error: &RedisError) {
    if pause == PAUSES.0 {
        tracing::warn!("cannot {doing} Redis, and goes on trying: {error}");
    } else {
        tracing::debug!("cannot {doing} Redis: {error}");
    }
}

fn connect(client: &Client) -> Result<Connection, RedisError> {
    let connection = client.get_connection_with_timeout(TIMEOUT)?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

/// Takes messages until nothing came for a while. Hosts are asked more often from a failure on, also of the first
/// connection after a silence.
fn listen(client: &Client, fleet: &Fleet, me: &str) -> Result<(), RedisError> {
    take_all(client, fleet, me).inspect_err(|_| fleet.set_pushed(false))
}

fn take_all(client: &Client, fleet: &Fleet, me: &str) -> Result<(), RedisError> {
    let mut connection = connect(client)?;
    let mut pubsub = connection.as_pubsub();
    pubsub.subscribe(CHANNEL)?;
    pubsub.set_read_timeout(Some(SILENCE))?;
    fleet.set_pushed(true);
    loop {
        match pubsub.get_message() {
            Ok(message) => take(message.get_payload_bytes(), fleet, me),
            Err(error) if error.is_timeout() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn take(message: &[u8], fleet: &Fleet, me: &str) {
    if message.len() > MAX_MESSAGE {
        return;
    }
    // Others may use the channel for something else.
    let Ok(value) = serde_json::from_slice::<Value>(message) else { return };
    let (Some(event), Some(host), Some(name)) =
        (value["event"].as_str(), value["host"].as_str(), value["name"].as_str())
    else {
        return;
    };
    // What we told ourselves is what we knew, and may be old by now.
    if value[TOLD_BY] == me {
        return;
    }
    if value.get(TOLD_BY).is_none() {
        fleet.note_publisher(host);
    }
    if event == REMOVED {
        fleet.take_pushed(host, name, None);
    } else if let Ok(proc) = serde_json::from_value::<ProcDocument>(value.clone()) {
        fleet.take_pushed(host, name, Some(proc));
    }
}

/// Tells changes as they come; while Redis is away, only the latest wait.
fn tell(client: &Client, mut changes: Receiver<FleetChange>, me: &str) {
    let mut connection: Option<Connection> = None;
    let mut pause = PAUSES.0;
    loop {
        let change = match changes.blocking_recv() {
            Ok(FleetChange { on_redis: true, .. }) => continue,
            Ok(FleetChange { change, .. }) => change,
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "Redis was too slow or away; changes of procs were not told");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let Some(message) = message(&change, me) else { continue };
        loop {
            match publish(client, &mut connection, &message) {
                Ok(()) => {
                    pause = PAUSES.0;
                    break;
                }
                Err(error) => {
                    connection = None;
                    complain("tell", pause, &error);
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }
}

fn publish(client: &Client, connection: &mut Option<Connection>, message: &str) -> Result<(), RedisError> {
    let open = match connection.take().filter(|connection| connection.is_open()) {
        Some(open) => open,
        None => connect(client)?,
    };
    let open = connection.insert(open);
    redis::cmd("PUBLISH").arg(CHANNEL).arg(message).exec(open)
}

/// As `proc_publisher` writes it: the proc's document and the event; and who tells it.
fn message(change: &ProcChange, me: &str) -> Option<String> {
    let mut value = serde_json::to_value(&change.proc).ok()?;
    value["event"] = change.event.as_str().into();
    value[TOLD_BY] = me.into();
    if let Value::Object(fields) = &mut value {
        fields.remove("usage");
    }
    Some(value.to_string())
}
