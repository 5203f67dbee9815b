//! One safe wrapper for each system call that neither std, nix nor rustix offers as a safe function.
//! Every `unsafe` block of the project is in this file.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::unistd::Pid;

/// What [`clone_process`] returns to each side.
pub enum Cloned {
    /// In the parent: the child's number and its pidfd.
    Parent(Pid, OwnedFd),
    /// In the child.
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `clone3`: a copy of this process in new namespaces (`CLONE_NEW*` flags), with default signal handlers.
///
/// The caller must have a single thread: in the copy only the calling thread exists, so a lock that another one
/// held (of the allocator, of standard error) would stay locked for ever.
pub fn clone_process(namespaces: libc::c_int) -> io::Result<Cloned> {
    const CLEAR_SIGNAL_HANDLERS: u64 = 0x1_0000_0000;
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid value of this plain structure of integers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces as u64 | libc::CLONE_PIDFD as u64 | CLEAR_SIGNAL_HANDLERS;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the structure and `pidfd` outlive the call; no memory is shared with the child (no CLONE_VM), which
    // goes on with a copy of this stack as after fork, and the caller is single-threaded.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match check(result)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(Pid::from_raw(pid as i32), pidfd))
        }
    }
}

/// Closes every descriptor from `first` up to `last`, both included.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: only called in a child that will use none of the closed descriptors again: it goes on to exec or
    // _exit without dropping their owners.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// `mount_setattr`: sets `MOUNT_ATTR_*` flags on a mount and, if `recursive`, on all below it, and makes them private.
/// With a user namespace, the mounts show owners as that one's map says (`MOUNT_ATTR_IDMAP`).
pub fn set_mount_attributes(
    mount: impl AsFd,
    flags: u64,
    recursive: bool,
    owners: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let idmap = if owners.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: flags | idmap,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: owners.map_or(0, |owners| owners.as_raw_fd() as u64),
    };
    let at = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the structure outlives the call and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            at,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Gives every signal its default action again; ignored ones would stay ignored across exec.
pub fn reset_signal_handlers() {
    /// At least as large as the kernel's structure everywhere; all-zero in it means the default action.
    const DEFAULT_ACTION: [u64; 8] = [0; 8];
    const SIGNAL_SET_BYTES: usize = 8;
    for number in 1..=64 {
        // SAFETY: the kernel reads its structure from a larger constant and writes nothing, and the default action
        // runs no code of ours. (The C library's own call refuses the two signals that it uses itself.)
        // It fails only for KILL and STOP, which always have their default action.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                DEFAULT_ACTION.as_ptr(),
                std::ptr::null::<u64>(),
                SIGNAL_SET_BYTES,
            )
        };
    }
}

/// The size of a terminal's window.
pub fn window_size(terminal: impl AsFd) -> io::Result<libc::winsize> {
    // SAFETY: all-zero is a valid value of this plain structure of integers.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes one `winsize`, which outlives the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    check(result.into())?;
    Ok(size)
}

/// Sets the size of a terminal's window; its programs get SIGWINCH.
pub fn set_window_size(terminal: impl AsFd, size: &libc::winsize) -> io::Result<()> {
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads one `winsize`, which outlives the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, std::ptr::from_ref(size)) };
    check(result.into()).map(drop)
}

/// Lets the other end of a new terminal be opened.
pub fn unlock_terminal(terminal: impl AsFd) -> io::Result<()> {
    let unlocked: libc::c_int = 0;
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSPTLCK reads one integer, which outlives the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCSPTLCK, &raw const unlocked) };
    check(result.into()).map(drop)
}

/// Switches the loopback interface of the calling process's network on, through any socket.
pub fn loopback_up(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this structure of integers and byte arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
    check(result.into()).map(drop)
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`: a new and empty session keyring instead of the inherited one.
pub fn new_session_keyring() -> io::Result<()> {
    // SAFETY: with a null pointer for the name the call reads and writes no memory of ours.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    check(result).map(drop)
}

/// `madvise(MADV_DONTNEED)` on all program code that is in this process's memory: it comes back from its files, page
/// by page, when it is next used. For a process that waits for days in one small loop.
pub fn forget_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp"), Some(_offset), Some(_device), Some(inode)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some((start, end)) = range.split_once('-') else { continue };
        let bounds = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16));
        let (Ok(start), Ok(end), true) = (bounds.0, bounds.1, inode != "0") else { continue };
        // SAFETY: the kernel's own list says that this is a private mapping of a file that cannot be written to, so
        // every page of it reads the same before and after the call.
        check(unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) }.into())?;
    }
    Ok(())
}

/// Ends this process at once, without destructors and without flushing what the parent had buffered.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}
