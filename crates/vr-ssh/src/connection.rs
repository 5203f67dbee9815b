//! One connection to a host: the network, the host's key and the login.

use std::borrow::Cow;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Handle, Msg};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, Preferred, SshId};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::authentication::authenticate;
use crate::error::SshError;
use crate::known_hosts::KnownKeys;
use crate::settings::{HostKeyCheck, SshSettings, Sudo};

/// How many commands run over one connection at once. OpenSSH allows ten unless told otherwise (`MaxSessions`).
const SEATS: usize = 8;
/// How long the login may take. A wrong password alone takes some seconds, on purpose.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent host is asked before it is taken as gone.
const KEEPALIVES: usize = 3;
/// How long nothing at all may go out before the connection is given up, when that is more than the keepalives take:
/// much that waits for a slow line is no reason.
const STALLED: Duration = Duration::from_secs(300);

/// The right to run a command now.
pub(crate) type Seat = OwnedSemaphorePermit;

/// A connection that is logged in. It ends when this is dropped.
pub(crate) struct Connection {
    host: String,
    user: String,
    sudo: Sudo,
    handle: Handle<Client>,
    /// A session that is stuck in writing to a frozen host sees nothing else than the end of this.
    _socket: Socket,
    seats: Arc<Semaphore>,
    end: Arc<OnceLock<String>>,
    used: Mutex<Instant>,
}

impl Connection {
    /// Connects and logs in.
    pub(crate) async fn open(host: &str, settings: &SshSettings) -> Result<Self, SshError> {
        let port = settings.port();
        let check = settings.host_key_check.unwrap_or_default();
        let known = known_keys(host, settings, check).await?;
        let limit = settings.connect_timeout();
        let unreachable = |reason: String| SshError::Unreachable { host: host.to_owned(), port, reason };
        let silent = || unreachable(format!("no answer within {}", humantime::format_duration(limit)));

        let begun = Instant::now();
        let stream =
            timeout(limit, connect(host, port, limit)).await.map_err(|_| silent())?.map_err(unreachable)?;
        let (stream, socket) = twice(stream).map_err(|error| unreachable(error.to_string()))?;
        let socket = Socket(socket);
        let refused = Arc::new(OnceLock::new());
        let end = Arc::new(OnceLock::new());
        let client =
            Client { known: Arc::clone(&known), check, refused: Arc::clone(&refused), end: Arc::clone(&end) };
        let exchange = client::connect_stream(Arc::new(config(settings, &known)), stream, client);
        let left = limit.saturating_sub(begun.elapsed());
        let handle = timeout(left, exchange).await.map_err(|_| silent())?;
        let mut handle = handle.map_err(|error| match refused.get() {
            Some(refused) => SshError::clone(refused),
            None => unreachable(explained(&error)),
        })?;

        let user = settings.user();
        let login = timeout(LOGIN_TIMEOUT, authenticate(&mut handle, host, &user, settings, &end)).await;
        login.map_err(|_| {
            let limit = humantime::format_duration(LOGIN_TIMEOUT);
            unreachable(format!("the login was not done within {limit}"))
        })??;
        tracing::debug!(host, port, user, "connected");
        Ok(Self {
            host: host.to_owned(),
            user,
            sudo: settings.sudo(),
            handle,
            _socket: socket,
            seats: Arc::new(Semaphore::new(SEATS)),
            end,
            used: Mutex::new(Instant::now()),
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn sudo(&self) -> Sudo {
        self.sudo.clone()
    }

    /// Whether it is over.
    pub(crate) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Why it is over.
    pub(crate) fn end_reason(&self) -> String {
        self.end.get().cloned().unwrap_or_else(|| "it was closed over there".to_owned())
    }

    /// Waits for the right to run a command over it.
    pub(crate) async fn seat(&self) -> Option<Seat> {
        let seat = Arc::clone(&self.seats).acquire_owned().await.ok();
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        seat
    }

    /// Whether nothing runs over it.
    pub(crate) fn is_idle(&self) -> bool {
        self.seats.available_permits() == SEATS
    }

    /// Since when nothing runs over it.
    pub(crate) fn idle_time(&self) -> Duration {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_idle() {
            *used = Instant::now();
        }
        used.elapsed()
    }

    pub(crate) async fn open_channel(&self) -> Result<Channel<Msg>, russh::Error> {
        self.handle.channel_open_session().await
    }
}

/// A second handle of the connection's socket, and the end of the connection when it is dropped: also of one that never
/// came about, whose task would go on for as long as the other side likes.
struct Socket(std::net::TcpStream);

impl Drop for Socket {
    fn drop(&mut self) {
        let _gone = self.0.shutdown(Shutdown::Both);
    }
}

async fn known_keys(
    host: &str,
    settings: &SshSettings,
    check: HostKeyCheck,
) -> Result<Arc<KnownKeys>, SshError> {
    let files = if check == HostKeyCheck::Off { Vec::new() } else { settings.known_hosts() };
    let (name, port) = (host.to_owned(), settings.port());
    let first = files.first().cloned().unwrap_or_default();
    let load = tokio::task::spawn_blocking(move || KnownKeys::load(files, &name, port));
    let known = load.await.map_err(|error| SshError::File { path: first, reason: error.to_string() })??;
    Ok(Arc::new(known))
}

/// Tries all addresses of a host. None may use up the time of the others.
async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let addresses = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> =
        addresses.map_err(|error| format!("its address is not known: {error}"))?.collect();
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {}", humantime::format_duration(share)),
        }
    }
    Err(last)
}

fn twice(stream: TcpStream) -> std::io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    let other = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, other))
}

fn config(settings: &SshSettings, known: &KnownKeys) -> client::Config {
    let keepalive = settings.keepalive();
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Velociraptor")),
        preferred: Preferred { key: Cow::Owned(known.algorithms()), ..Preferred::DEFAULT },
        keepalive_interval: Some(keepalive),
        keepalive_max: KEEPALIVES,
        inactivity_timeout: Some(STALLED.max(keepalive.saturating_mul(KEEPALIVES as u32 + 1))),
        nodelay: true,
        ..client::Config::default()
    }
}

/// What the library says, in the words of somebody who wants to know what to do.
fn explained(error: &russh::Error) -> String {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ended = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    match error {
        russh::Error::Version => "what answers there is no SSH server".to_owned(),
        russh::Error::Disconnect | russh::Error::HUP => "it closed the connection".to_owned(),
        russh::Error::NoCommonAlgo { kind, theirs, .. } => {
            format!("no {kind:?} algorithm in common; it has {}", theirs.join(", "))
        }
        russh::Error::IO(error) if ended.contains(&error.kind()) => "it closed the connection".to_owned(),
        error => error.to_string(),
    }
}

/// What the library asks and tells us.
pub(crate) struct Client {
    known: Arc<KnownKeys>,
    check: HostKeyCheck,
    refused: Arc<OnceLock<SshError>>,
    end: Arc<OnceLock<String>>,
}

impl Client {
    async fn decide(&self, key: PublicKey) -> Result<(), SshError> {
        if self.check == HostKeyCheck::Off {
            return Ok(());
        }
        match self.known.check(&key) {
            Err(SshError::UnknownHostKey(_)) if self.check == HostKeyCheck::AcceptNew => {
                let known = Arc::clone(&self.known);
                let add = tokio::task::spawn_blocking(move || known.add(&key)).await;
                add.unwrap_or_else(|error| {
                    Err(SshError::File { path: "known_hosts".into(), reason: error.to_string() })
                })
            }
            decided => decided,
        }
    }
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        // No certificates are asked for.
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        match self.decide(key.clone()).await {
            Ok(()) => Ok(true),
            Err(error) => {
                let _first = self.refused.set(error);
                Ok(false)
            }
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        let text = match reason {
            DisconnectReason::ReceivedDisconnect(info) if info.message.is_empty() => {
                format!("it was closed over there ({:?})", info.reason_code)
            }
            DisconnectReason::ReceivedDisconnect(info) => printable(&info.message),
            DisconnectReason::Error(russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout) => {
                "it does not answer any more".to_owned()
            }
            DisconnectReason::Error(error) => explained(&error),
        };
        let _first = self.end.set(text);
        Ok(())
    }

    // We never ask for any of these, so that nobody over there may open one: a handle that is dropped says no.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn should_accept_unknown_server_channel(&mut self, _: ChannelId, _: &str) -> bool {
        false
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// What a host says, without what a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}
