//! The file of the program that makes containers, as far as a container of its own user's could reach it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::fexecve;

/// Starts this program anew from a copy in memory that nobody can change, if its file belongs to the calling user and
/// that user is not root. In such a user's containers every user is that one, and whoever gets this program to run
/// inside could otherwise write to its file by way of `/proc`. To be called before anything else; returns when there
/// is nothing to do.
pub fn run_from_a_copy() -> io::Result<()> {
    const NAME: &str = "vrun-copy";
    const MFD_EXEC: u32 = 0x10;
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok(());
    }
    let mut own = File::open("/proc/self/exe")?;
    let is_copy =
        std::fs::read_link("/proc/self/exe")?.to_string_lossy().starts_with(&format!("/memfd:{NAME}"));
    if is_copy || own.metadata()?.uid() != user.as_raw() {
        return Ok(());
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where `vm.memfd_noexec` is 1 it has to be said that it is to be run; kernels before 6.3 do not know how.
    let copy = match memfd_create(NAME, flags | MFdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::EINVAL) => memfd_create(NAME, flags),
        made => made,
    }?;
    io::copy(&mut own, &mut File::from(copy.try_clone()?))?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(copy.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::other);
    let arguments: Vec<_> =
        std::env::args_os().map(|argument| text(argument.into_vec())).collect::<Result<_, _>>()?;
    let environment: Vec<_> = std::env::vars_os()
        .map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            text(key.into_vec())
        })
        .collect::<Result<_, _>>()?;
    let Err(error) = fexecve(copy, &arguments, &environment);
    Err(error.into())
}
