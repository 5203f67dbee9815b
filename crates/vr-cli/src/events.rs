//! `events`: what happened, and what happens.

use std::thread;
use std::time::{Duration, Instant};

use vr_common::api::Page;
use vr_common::events::{Envelope, Event};

use crate::Outcome;
use crate::args;
use crate::error::CliError;
use crate::login::Session;
use crate::output::Output;
use crate::patience::{Outage, Patience};

/// Shows past events, or follows the stream until interrupted.
pub fn run(args: &args::Events, output: &Output, session: Session) -> Result<Outcome, CliError> {
    if args.follow {
        follow(output, &session, Patience { poll: Duration::from_secs(1), ..Patience::new(Duration::MAX) })?;
        return Ok(Outcome::Done);
    }
    let path = format!("/api/v1/events/?limit={}", args.limit);
    let page: Page<Event> = session.client.get(&path).map_err(|e| session.error(e))?;
    for event in page.objects.iter().rev() {
        show(event, output)?;
    }
    Ok(Outcome::Done)
}

/// Follows the stream and takes it up again where it broke, until the server stays away for too long.
fn follow(output: &Output, session: &Session, patience: Patience) -> Result<(), CliError> {
    let mut last_id: Option<String> = None;
    let mut outage = Outage::new(patience.outage);
    // A server that is not there at all, or a wrong login, is said at once and not waited for.
    session.client.get::<Page<Event>>("/api/v1/events/?limit=1").map_err(|e| session.error(e))?;
    loop {
        let began = Instant::now();
        let mut heard = false;
        let mut failure = None;
        let before = last_id.clone();
        let ended = session.client.events("/api/streams/events/", before.as_deref(), |envelope| {
            if !heard {
                outage.is_over();
            }
            heard = true;
            failure = show_envelope(&envelope, output).err();
            last_id = Some(envelope.id).filter(|id| !id.is_empty()).or(last_id.take());
            failure.is_none()
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        // A stream that held for a while had a server at its other end, silent as it was.
        if ended.is_ok() || heard || began.elapsed() > patience.outage {
            outage.is_over();
        }
        if let Err(error) = ended {
            outage.bear(session, error)?;
        }
        thread::sleep(patience.poll);
    }
}

fn show_envelope(envelope: &Envelope, output: &Output) -> Result<(), CliError> {
    match serde_json::from_str::<Event>(&envelope.data) {
        Ok(event) => show(&event, output),
        // `flush` and whatever newer servers send beside events.
        Err(_) => Ok(()),
    }
}

fn show(event: &Event, output: &Output) -> Result<(), CliError> {
    if output.is_json() {
        let text = serde_json::to_string(event).map_err(|e| CliError::Output(e.into()))?;
        return output.line(&text);
    }
    output.line(&one_event(event))
}

/// Time, title, tags and message; further lines of the message are indented.
fn one_event(event: &Event) -> String {
    let message = event.message.trim_end().replace('\n', "\n    ");
    format!("{}  {}  [{}]  {message}", event.time, event.title, event.tags.join(" ")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_and_its_message_may_be_more() {
        let event = Event {
            time: "2026-01-02T03:04:05Z".into(),
            message: "one\ntwo\n".into(),
            tags: vec!["swarm".into(), "failed".into()],
            title: "hello-v1-web".into(),
            extra: serde_json::Map::new(),
        };
        assert_eq!(one_event(&event), "2026-01-02T03:04:05Z  hello-v1-web  [swarm failed]  one\n    two");
    }
}
