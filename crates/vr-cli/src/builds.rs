//! `build`.

use serde_json::{Value, json};
use url::Url;
use vr_common::api::Build;
use vr_common::names::{AppName, Version};

use crate::Outcome;
use crate::args;
use crate::error::CliError;
use crate::login::Session;
use crate::output::{Output, complain, say};
use crate::patience::{Patience, Wait};

/// `build`, checked.
#[derive(Debug)]
pub struct Request {
    app: AppName,
    version: Version,
    patience: Option<Patience>,
}

impl Request {
    /// Checks the arguments.
    pub fn new(args: &args::Build) -> Result<Self, CliError> {
        Ok(Self {
            app: args.app.parse()?,
            version: args.tag.parse()?,
            patience: args.wait.then(|| Patience::new(args.timeout)),
        })
    }

    /// Starts the build and, if asked to, waits for its end.
    pub fn run(&self, output: &Output, session: Session) -> Result<Outcome, CliError> {
        let wanted = json!({"app": format!("/api/v1/apps/{}/", self.app), "tag": self.version});
        let location = session.client.create("/api/v1/builds/", &wanted).map_err(|e| session.error(e))?;
        let uri = path_of(&location);
        session.client.post::<Value>(&format!("{uri}build/"), &json!({})).map_err(|e| session.error(e))?;
        if !output.is_json() {
            output.line(&uri)?;
        }
        match self.patience {
            Some(patience) => self.wait(&uri, patience, output, &session),
            None => {
                if output.is_json() {
                    output.json(&json!({"resource_uri": uri}))?;
                }
                Ok(Outcome::Done)
            }
        }
    }

    fn wait(
        &self,
        uri: &str,
        patience: Patience,
        output: &Output,
        session: &Session,
    ) -> Result<Outcome, CliError> {
        let mut wait = Wait::new(session, patience);
        let mut state = String::new();
        let build = loop {
            if let Some(build) = wait.get::<Build>(uri)? {
                if build.status != state {
                    say(&format!("{} {}: {}", self.app, self.version, build.status));
                    state.clone_from(&build.status);
                }
                if !matches!(build.status.as_str(), "pending" | "started") {
                    break build;
                }
            }
            wait.pause(|| format!("the build of {} {} is still {state}", self.app, self.version))?;
        };
        if output.is_json() {
            output.json(&build)?;
        } else {
            let parts = [Some(build.status.as_str()), build.file.as_deref(), build.file_md5.as_deref()];
            output.line(&parts.into_iter().flatten().collect::<Vec<_>>().join(" "))?;
        }
        if build.status == "success" {
            return Ok(Outcome::Done);
        }
        let reason = build.error.as_deref().unwrap_or("the server gave no reason").trim_end();
        complain(&format!("the build of {} {} {}: {reason}", self.app, self.version, build.status));
        if let Some(log) = &build.compile_log {
            say(&format!("hint: its log is at {}/files/{log}", session.client.base()));
        }
        Ok(Outcome::Failed)
    }
}

/// A `Location` may be a path or a whole URL.
fn path_of(location: &str) -> String {
    Url::parse(location).map_or_else(|_| location.to_owned(), |url| url.path().to_owned())
}
