//! How long a server that went away is waited for.

use std::time::Duration;

use crate::support::{Reply, Server};
use serde_json::Value;
use vr_cli::error::CliError;
use vr_cli::login::Session;
use vr_cli::patience::{Patience, Wait};
use vr_common::api::Client;
use vr_common::secret::Secret;

fn session(url: &str) -> Session {
    Session { client: Client::new(url, "admin", &Secret::new("p")), username: "admin".into() }
}

fn patience(outage: Duration) -> Patience {
    Patience { poll: Duration::from_millis(1), outage, timeout: Duration::from_secs(60) }
}

#[test]
fn a_server_that_stays_away_is_given_up() {
    let server = Server::start(|_| Reply::HangUp);
    let session = session(&server.url());
    let mut wait = Wait::new(&session, patience(Duration::from_millis(20)));
    let error = loop {
        match wait.get::<Value>("/api/v1/dispatches/t1/") {
            Ok(answer) => assert_eq!(answer, None),
            Err(error) => break error,
        }
        wait.pause(|| "nothing".into()).unwrap();
    };
    assert_eq!(error.to_string(), format!("{} has not answered for 20ms", server.url()));
    assert!(server.requests().len() >= 2);
}

#[test]
fn a_refusal_is_not_waited_for() {
    for (status, unauthorized) in [(401, true), (404, false), (500, false)] {
        let server = Server::start(move |_| Reply::Json(status, Value::Null));
        let session = session(&server.url());
        let error = Wait::new(&session, patience(Duration::MAX)).get::<Value>("/x/").unwrap_err();
        assert_eq!(matches!(error, CliError::Unauthorized { .. }), unauthorized, "{status}");
    }
}
