//! Whether an agent could be started with these flags: files, addresses, and who would be let in.

use std::io;

use vr_common::host_api::Finding;
use vr_common::lock::{FileLock, LockError};
use vr_common::names::HostName;

use super::{missing, ok, warn};
use crate::address::ListenAddress;
use crate::error::ServeError;
use crate::settings::{Flags, read_token};

/// Stands in for the host's name, which changes nothing here.
const ANY_HOST: &str = "localhost";

pub async fn look(mut flags: Flags) -> Vec<Finding> {
    if flags.host.is_none() {
        flags.host = ANY_HOST.parse::<HostName>().ok();
    }
    // An agent that runs has them already.
    let lock = FileLock::existing(&flags.root().join("agent.lock"));
    let is_served = matches!(lock, Err(LockError::Held(_)));
    drop(lock);
    let mut findings = Vec::new();
    let addresses = flags.listen().into_iter().chain(flags.supervisor_listen.clone());
    for address in addresses {
        findings.push(listen(&address, is_served).await);
    }
    let checked = flags.settings().and_then(|settings| {
        settings.token_file.as_deref().map(read_token).transpose()?;
        settings.tls.as_ref().map(|tls| tls.read()).transpose().map_err(ServeError::from)?;
        Ok(settings)
    });
    findings.push(match checked {
        Err(e) => {
            missing("settings", vr_common::exit::chain(&e), "correct the flags or the file that is named")
        }
        Ok(settings) if settings.token_file.is_none() && settings.tls.is_none() => warn(
            "settings",
            "there is no token, so every user and app of this machine may call the agent",
            "give it --token-file",
        ),
        Ok(_) => ok("settings", "they can be used"),
    });
    findings
}

async fn listen(address: &ListenAddress, is_served: bool) -> Finding {
    let what = format!("address {address}");
    let tried = match address {
        ListenAddress::Tcp(address) => tokio::net::TcpListener::bind(address).await.map(drop),
        // Nothing is made here, so its folder is all that can be looked at.
        ListenAddress::Unix(path) => match tokio::net::UnixStream::connect(path).await {
            Ok(_) => Err(io::Error::from(io::ErrorKind::AddrInUse)),
            Err(_) => Ok(()),
        },
    };
    match tried {
        Ok(()) => ok(&what, "is free"),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_served => ok(&what, "an agent serves there"),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            missing(&what, "another program listens there", "end it, or choose another --listen")
        }
        Err(e) => missing(&what, e.to_string(), "choose another --listen"),
    }
}
