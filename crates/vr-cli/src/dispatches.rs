//! Following dispatches to their end.

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use vr_common::api::{Dispatch, Transition};

use crate::error::CliError;
use crate::login::Session;
use crate::output::{printable, say};
use crate::patience::{Patience, Wait};

/// A dispatch that was asked for, and what is known of it.
#[derive(Debug, Clone)]
pub struct Started {
    /// `<app>-<config>-<proc>`.
    pub swarm_name: String,
    /// The dispatch's id.
    pub trace_id: String,
    /// As last seen; none when it was not looked at yet.
    pub dispatch: Option<Dispatch>,
}

impl Started {
    fn is_over(&self) -> bool {
        self.dispatch.as_ref().is_some_and(Dispatch::is_over)
    }

    fn state(&self) -> &str {
        self.dispatch.as_ref().map_or("queued", |dispatch| &dispatch.state)
    }

    /// How long it took, in seconds; none before its end.
    pub fn seconds(&self) -> Option<f64> {
        let dispatch = self.dispatch.as_ref()?;
        seconds_between(&dispatch.created, dispatch.finished.as_deref()?)
    }
}

/// Looks until all have ended, tells each change of state, and calls `on_end` once for each that ended.
///
/// # Errors
/// When the time is over, the server stays away, or does not know a dispatch. What is known then of the
/// dispatches is kept in `started`.
pub fn follow(
    session: &Session,
    started: &mut [Started],
    patience: Patience,
    mut on_end: impl FnMut(&Started) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut wait = Wait::new(session, patience);
    // Hides itself when standard error is no terminal.
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
        spinner.set_style(style);
    }
    loop {
        for one in started.iter_mut().filter(|one| !one.is_over()) {
            let path = format!("/api/v1/dispatches/{}/", one.trace_id);
            // Further words of this round would each wait for the same silent server.
            let Some(dispatch) = wait.get::<Dispatch>(&path)? else { break };
            let told = one.dispatch.as_ref().map_or(0, |before| before.transitions.len());
            for transition in dispatch.transitions.iter().skip(told) {
                let line = describe(&one.swarm_name, &dispatch.created, transition);
                spinner.suspend(|| say(&line));
            }
            one.dispatch = Some(dispatch);
            if one.is_over() {
                spinner.suspend(|| on_end(one))?;
            }
        }
        let open: Vec<_> = started.iter().filter(|one| !one.is_over()).collect();
        if open.is_empty() {
            spinner.finish_and_clear();
            return Ok(());
        }
        let states: Vec<_> = open.iter().map(|one| format!("{} {}", one.swarm_name, one.state())).collect();
        spinner.set_message(printable(&states.join(", ")));
        spinner.tick();
        let first = || format!("{} is still {}", open[0].swarm_name, open[0].state());
        wait.pause(first).inspect_err(|_| spinner.finish_and_clear())?;
    }
}

/// `hello-prod-web: building after 0.4 s (no build of v2 yet)`.
fn describe(swarm_name: &str, created: &str, transition: &Transition) -> String {
    let mut line = format!("{swarm_name}: {}", transition.to);
    if let Some(seconds) = seconds_between(created, &transition.time) {
        line += &format!(" after {seconds:.1} s");
    }
    // The rest of a longer reason is the dispatch's error, which is shown at its end.
    match transition.why.lines().next().map(str::trim).filter(|why| !why.is_empty()) {
        Some(why) => format!("{line} ({why})"),
        None => line,
    }
}

/// From one ISO 8601 time to another; none when one of them is none.
pub fn seconds_between(from: &str, to: &str) -> Option<f64> {
    let (from, to) = (from.parse::<Timestamp>().ok()?, to.parse::<Timestamp>().ok()?);
    Some(to.duration_since(from).as_secs_f64().max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_state_is_one_line() {
        let transition = |time: &str, why: &str| Transition {
            time: time.into(),
            from: "queued".into(),
            to: "building".into(),
            who: "worker".into(),
            why: why.into(),
        };
        let created = "2026-01-02T03:04:05.000Z";
        for (time, why, expected) in [
            ("2026-01-02T03:04:06.26Z", "no build\nyet", "a-b-c: building after 1.3 s (no build)"),
            ("2026-01-02T03:05:05+00:00", "", "a-b-c: building after 60.0 s"),
            ("soon", " ", "a-b-c: building"),
        ] {
            assert_eq!(describe("a-b-c", created, &transition(time, why)), expected);
        }
    }
}
