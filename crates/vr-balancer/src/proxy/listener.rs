//! An address: takes clients' connections and hands each of them to `connection`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::connection;
use super::forward::DataPlane;
use super::pool::Pool;

/// The pause after an `accept` that failed, most likely because no more files may be open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who gets the requests of a listener.
pub(super) enum Target {
    Pool(Arc<Pool>),
    /// The pool that the routes lead to from the request's host.
    Routes,
}

/// What connections to one address have in common.
pub(super) struct Front {
    pub(super) target: Target,
    pub(super) tls: Option<TlsAcceptor>,
    /// Whose connections begin with a header of the PROXY protocol.
    pub(super) introduced_by: Vec<IpNet>,
    /// The port of https that clients are sent to.
    pub(super) redirect_to_https: Option<u16>,
}

impl Front {
    /// A pool's own address.
    pub(super) fn of(pool: Arc<Pool>) -> Self {
        Self { target: Target::Pool(pool), tls: None, introduced_by: Vec::new(), redirect_to_https: None }
    }
}

/// A listening address and the task that serves it.
pub(super) struct Listener {
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Listener {
    /// Serves the connections of a socket that listens already.
    pub(super) fn start(socket: TcpListener, front: Front, plane: Arc<DataPlane>) -> Self {
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(socket, Arc::new(front), plane, stop.clone()));
        Self { stop, accepting }
    }

    /// Gives the address back. Connections that are busy end after the answer that they wait for.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "the task of a listener died");
        }
    }
}

async fn accept(socket: TcpListener, front: Arc<Front>, plane: Arc<DataPlane>, stop: CancellationToken) {
    let next = async || {
        let permit = plane.admission.wait().await;
        (socket.accept().await, permit)
    };
    loop {
        tokio::select! {
            (accepted, permit) = next() => match accepted {
                Ok((stream, peer)) => serve(stream, peer, &front, &plane, Some(&stop), permit),
                Err(error) => {
                    plane.admission.cannot_accept.make(None, Some(&error));
                    drop(permit);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = stop.cancelled() => break,
        }
    }
    // The kernel has already said yes to those that wait here.
    while let Some(Ok((stream, peer))) = socket.accept().now_or_never() {
        serve(stream, peer, &front, &plane, None, None);
    }
}

/// Serves a connection until `stop`; without one, for a single request.
fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    front: &Arc<Front>,
    plane: &Arc<DataPlane>,
    stop: Option<&CancellationToken>,
    permit: Option<OwnedSemaphorePermit>,
) {
    let place = plane.admission.enter(permit);
    let task = connection(stream, peer, Arc::clone(front), Arc::clone(plane), stop.cloned());
    plane.tasks.spawn(async move {
        task.await;
        drop(place);
    });
}
