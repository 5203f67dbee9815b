//! What a new container tells its parent while it is being made, over a socket pair of whole messages that closes
//! by itself when the program runs. The container's init tells its program to go on over another one.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

/// One message.
#[derive(Debug)]
pub(super) enum Message {
    /// A step failed; the whole story in words.
    Failed(String),
    /// The user namespace that was tried cannot be had for this container; why not.
    NoIdentities(String),
    /// An end of the program's terminal.
    Terminal(OwnedFd),
    /// The program is about to run, or may: its process number as the parent sees it.
    Ready(i32),
    /// The program runs: nobody is left who could say anything.
    Closed,
}

const LONGEST: usize = 4096;

/// The parent's and the container's end.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (parent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // The kernel then tells us the sender's process number, translated to our namespace.
    sockopt::set_socket_passcred(&parent, true)?;
    Ok((parent, child))
}

fn send(to: BorrowedFd<'_>, kind: u8, text: &[u8], handle: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let handles: Vec<_> = handle.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !handles.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&handles));
    }
    let text = &text[..text.len().min(LONGEST)];
    sendmsg(to, &[IoSlice::new(&[kind]), IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Tells the parent what failed. If it cannot be told, there is nobody left to tell.
pub(super) fn send_failure(to: impl AsFd, text: &str) {
    let _ = send(to.as_fd(), b'E', text.as_bytes(), None);
}

/// Tells the parent to try another user namespace.
pub(super) fn send_no_identities(to: impl AsFd, text: &str) {
    let _ = send(to.as_fd(), b'I', text.as_bytes(), None);
}

/// Hands the terminal over.
pub(super) fn send_terminal(to: impl AsFd, terminal: impl AsFd) -> io::Result<()> {
    send(to.as_fd(), b'T', b"", Some(terminal.as_fd()))
}

/// Says that the sender is about to become the program.
pub(super) fn send_ready(to: impl AsFd) -> io::Result<()> {
    send(to.as_fd(), b'R', b"", None)
}

/// Waits for the next message.
pub(super) fn receive(from: impl AsFd) -> io::Result<Message> {
    let mut text = [0; LONGEST + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let into = &mut [IoSliceMut::new(&mut text)];
        match recvmsg(&from, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            // The container died with a message of ours unread; to us that is the end of its messages.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Message::Closed),
            done => break done?,
        }
    };
    let (mut handle, mut pid) = (None, 0);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(handles) => handle = handles.last().or(handle),
            RecvAncillaryMessage::ScmCredentials(sender) => pid = sender.pid.as_raw_nonzero().get(),
            _ => {}
        }
    }
    let odd = || io::Error::other("a message without sense from the new container");
    match text[..received.bytes].split_first() {
        None => Ok(Message::Closed),
        Some((b'E', words)) => Ok(Message::Failed(String::from_utf8_lossy(words).into_owned())),
        Some((b'I', words)) => Ok(Message::NoIdentities(String::from_utf8_lossy(words).into_owned())),
        Some((b'T', _)) => handle.map(Message::Terminal).ok_or_else(odd),
        Some((b'R', _)) => Ok(Message::Ready(pid)),
        Some(_) => Err(odd()),
    }
}
