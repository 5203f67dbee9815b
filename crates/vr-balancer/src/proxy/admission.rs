//! How many connections clients may have, altogether and each of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::warnings::Complaint;

/// Counts and bounds the connections of all listeners.
pub(super) struct Admission {
    free: Arc<Semaphore>,
    per_client: Option<u32>,
    clients: Mutex<HashMap<IpAddr, u32>>,
    open: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    pub(super) cannot_accept: Complaint,
    too_many: Complaint,
    /// Clients whose behaviour ended their connection.
    pub(super) misbehaved: Complaint,
}

/// A connection's place among all.
pub(super) struct Place {
    admission: Arc<Admission>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// A connection's place among those of its client.
pub(super) struct ClientPlace {
    admission: Arc<Admission>,
    client: IpAddr,
}

impl Admission {
    pub(super) fn new(max: usize, per_client: Option<u32>) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            per_client,
            clients: Mutex::default(),
            open: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cannot_accept: Complaint::new("cannot accept a connection"),
            too_many: Complaint::new(
                "a client has as many connections as it may have, a further one was closed",
            ),
            misbehaved: Complaint::new("a connection was closed, as its client does not behave"),
        }
    }

    /// Waits until there may be one connection more. New ones wait in the kernel for that long.
    pub(super) async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    pub(super) fn enter(self: &Arc<Self>, permit: Option<OwnedSemaphorePermit>) -> Place {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Place { admission: Arc::clone(self), _permit: permit }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more connection of this client; `Err` if it has as many as it may have.
    pub(super) fn enter_client(self: &Arc<Self>, client: IpAddr) -> Result<Option<ClientPlace>, ()> {
        let Some(most) = self.per_client else {
            return Ok(None);
        };
        let client = client.to_canonical();
        let mut clients = self.clients();
        let open = clients.entry(client).or_insert(0);
        if *open >= most {
            drop(clients);
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.too_many.make(Some(client), None);
            return Err(());
        }
        *open += 1;
        Ok(Some(ClientPlace { admission: Arc::clone(self), client }))
    }

    /// Open, accepted and refused ones.
    pub(super) fn counts(&self) -> [u64; 3] {
        [&self.open, &self.accepted, &self.refused].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// To be called every few seconds.
    pub(super) fn say_what_was_left_out(&self) {
        for complaint in [&self.cannot_accept, &self.too_many, &self.misbehaved] {
            complaint.say_what_was_left_out();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut clients = self.admission.clients();
        if let Some(open) = clients.get_mut(&self.client) {
            *open -= 1;
            if *open == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_connections_and_others_have_theirs() {
        let admission = Arc::new(Admission::new(10, Some(2)));
        let (one, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let places: Vec<_> = (0..2).map(|_| admission.enter_client(one).ok().unwrap().unwrap()).collect();
        assert!(admission.enter_client("::ffff:192.0.2.1".parse().unwrap()).is_err());
        assert!(admission.enter_client(other).is_ok());
        drop(places);
        assert!(admission.enter_client(one).is_ok());
        assert!(admission.clients().is_empty(), "nobody is remembered without a connection");
        assert_eq!(admission.counts(), [0, 0, 1]);
    }
}
