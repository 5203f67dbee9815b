//! A place where a script can say that it has come to a point, and wait to be let on.

use std::net::{TcpListener, TcpStream};

use crate::until;

/// The place, a port of the loopback interface.
#[derive(Debug)]
pub struct Meeting(TcpListener);

impl Meeting {
    /// A new one.
    ///
    /// # Panics
    /// When no port is free.
    #[allow(clippy::new_without_default, reason = "making one has an effect")]
    pub fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    /// What to write into a script of bash.
    ///
    /// # Panics
    /// When the port is gone.
    pub fn script(&self) -> String {
        format!("exec 9<>/dev/tcp/127.0.0.1/{} && read -r word <&9", self.port())
    }

    /// A URL for a program that would fetch something; nobody answers unless the test does.
    ///
    /// # Panics
    /// When the port is gone.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port())
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    /// Waits for somebody to come; dropping the result does not let them on as if nothing were wrong, writing a
    /// line does.
    ///
    /// # Panics
    /// When nobody comes.
    #[track_caller]
    pub fn wait(&self) -> TcpStream {
        self.0.set_nonblocking(true).expect("a socket");
        let mut found = None;
        until("somebody comes to the meeting", || {
            found = self.0.accept().ok();
            found.is_some()
        });
        let (stream, _) = found.expect("somebody came");
        stream.set_nonblocking(false).expect("a socket");
        stream
    }
}
