//! Which server, and as whom.
//!
//! Each of address, name and password comes from the first that has it: the command line, the environment,
//! the credentials file, and last a question when there is a terminal to ask it on.

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::ToSocketAddrs;

use url::Url;
use vr_common::api::{ApiError, Client};
use vr_common::credentials::Credentials;
use vr_common::secret::Secret;

use crate::args::Arguments;
use crate::error::CliError;

/// A client that is logged in, and as whom.
#[derive(Debug)]
pub struct Session {
    /// The client.
    pub client: Client,
    /// The user.
    pub username: String,
}

impl Session {
    /// The error of a call, with a refused login said in plain words.
    pub fn error(&self, error: ApiError) -> CliError {
        match error.status() {
            Some(401) => CliError::Unauthorized {
                server: self.client.base().to_owned(),
                username: self.username.clone(),
            },
            _ => CliError::Api(error),
        }
    }
}

/// What the environment holds.
#[derive(Debug, Default)]
struct Environment {
    user: Option<String>,
    password: Option<Secret>,
}

/// The client that the command line, the environment and the credentials file ask for.
pub fn client(arguments: &Arguments) -> Result<Session, CliError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let environment = Environment {
        user: variable("USER").or_else(|| variable("LOGNAME")),
        password: variable("VELOCIRAPTOR_PASSWORD").map(Secret::new),
    };
    // A file that is not needed must not be in the way.
    let given = arguments.url.is_some() && arguments.username.is_some() && environment.password.is_some();
    let credentials = if given { Credentials::default() } else { Credentials::load()? };
    let server = match arguments.url.as_deref().filter(|url| !url.is_empty()) {
        Some(url) => checked_url(url)?,
        None => match credentials.default_server() {
            Some(url) => checked_url(url)?,
            None => conventional_server()?,
        },
    };
    let username = arguments.username.as_deref().filter(|name| !name.is_empty());
    let (username, password) = login(&server, username, &environment, &credentials)?;
    Ok(Session { client: Client::new(&server, &username, &password), username })
}

fn login(
    server: &str,
    username: Option<&str>,
    environment: &Environment,
    credentials: &Credentials,
) -> Result<(String, Secret), CliError> {
    let known = credentials.login(server);
    let username = match (username, known, &environment.user) {
        (Some(name), _, _) => name.to_owned(),
        (None, Some(login), _) => login.username.clone(),
        // As the published client does: whoever sets a password without a name means their own.
        (None, None, Some(user)) if environment.password.is_some() => user.clone(),
        _ => ask_username(server)?,
    };
    let password = match (&environment.password, known) {
        (Some(password), _) => password.clone(),
        (None, Some(login)) if login.username == username => login.password.clone(),
        _ => ask_password(server, &username)?,
    };
    Ok((username, password))
}

fn ask_username(server: &str) -> Result<String, CliError> {
    if !io::stdin().is_terminal() {
        let how = "give --username or set VELOCIRAPTOR_USERNAME and VELOCIRAPTOR_PASSWORD";
        return Err(CliError::NoLogin { what: "user name", server: server.to_owned(), how });
    }
    eprint!("User name for {server}: ");
    io::stderr().flush().map_err(CliError::Ask)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(CliError::Ask)?;
    Ok(line.trim().to_owned())
}

fn ask_password(server: &str, username: &str) -> Result<Secret, CliError> {
    if !io::stdin().is_terminal() {
        let how = "set VELOCIRAPTOR_PASSWORD";
        return Err(CliError::NoLogin { what: "password", server: server.to_owned(), how });
    }
    let question = format!("Password for {username} at {server}: ");
    rpassword::prompt_password(question).map(Secret::new).map_err(CliError::Ask)
}

/// The address, without a final slash.
fn checked_url(text: &str) -> Result<String, CliError> {
    let bad = |reason: &str| CliError::Url { url: without_password(text), reason: reason.to_owned() };
    let url = Url::parse(text).map_err(|e| bad(&format!("{e} (expected such as http://127.0.0.1:8000)")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("expected http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("give the login with --username and VELOCIRAPTOR_PASSWORD, not in the address"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("expected nothing after the host and port"));
    }
    Ok(text.trim().trim_end_matches('/').to_owned())
}

fn without_password(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => text.to_owned(),
    }
}

/// By convention a network's server is the host `deploy`.
fn conventional_server() -> Result<String, CliError> {
    let known = ("deploy", 443).to_socket_addrs().is_ok_and(|mut addresses| addresses.next().is_some());
    if known { Ok("https://deploy".to_owned()) } else { Err(CliError::NoServer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert_eq!(checked_url("http://127.0.0.1:8000/").unwrap(), "http://127.0.0.1:8000");
        assert_eq!(checked_url("https://deploy").unwrap(), "https://deploy");
        for (text, expected) in [
            ("127.0.0.1", "relative URL without a base (expected such as http://127.0.0.1:8000)"),
            ("localhost:8000", "expected http:// or https://"),
            ("ftp://a", "expected http:// or https://"),
            ("http://a/api/v1/", "expected nothing after the host and port"),
            ("http://a/?x=1", "expected nothing after the host and port"),
        ] {
            let message = checked_url(text).unwrap_err().to_string();
            assert_eq!(message, format!("{text:?} is not a server's address: {expected}"));
        }
        let message = checked_url("http://bob:hunter2@a").unwrap_err().to_string();
        assert!(message.starts_with("\"http://***@a\" is not"), "{message}");
    }

    #[test]
    fn the_nearest_login_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        Credentials::remember_in(&path, "http://a", "filed", &Secret::new("from file")).unwrap();
        let credentials = Credentials::load_from(&path).unwrap();
        let nothing = Environment::default();
        let set = Environment { user: Some("me".into()), password: Some(Secret::new("from environment")) };

        let pair = |found: (String, Secret)| (found.0, found.1.expose().to_owned());
        let is = |name: &str, password: &str| (name.to_owned(), password.to_owned());
        let check = |server, name, environment| pair(login(server, name, environment, &credentials).unwrap());
        assert_eq!(check("http://a", None, &nothing), is("filed", "from file"));
        assert_eq!(check("http://a", None, &set), is("filed", "from environment"));
        assert_eq!(check("http://a", Some("bob"), &set), is("bob", "from environment"));
        assert_eq!(check("http://b", None, &set), is("me", "from environment"));
    }
}
