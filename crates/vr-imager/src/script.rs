//! The provisioning script: how it is to be run, and whether the base has what runs it.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vr_runner::container::{ContainerError, open_beneath};

use crate::ImagerError;

/// How much of the beginning the kernel looks at for the line with `#!`, in bytes.
const LONGEST_LINE: u64 = 256;

/// What a script is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Script {
    /// Its first line names the program that reads it.
    For(PathBuf),
    /// It does not say who is to read it: `/bin/sh` is, as every shell does it.
    ForShell,
    /// It is a program itself.
    Program,
}

impl Script {
    /// Looks at the beginning of a file; `None` when it is empty.
    pub(crate) fn look_at(file: impl Read) -> io::Result<Option<Self>> {
        let mut beginning = Vec::new();
        file.take(LONGEST_LINE).read_to_end(&mut beginning)?;
        if beginning.is_empty() {
            return Ok(None);
        }
        if beginning.starts_with(b"\x7fELF") {
            return Ok(Some(Self::Program));
        }
        let line = beginning.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let program = line.strip_prefix(b"#!").unwrap_or_default().trim_ascii_start();
        let end = program.iter().position(|byte| b" \t\0".contains(byte)).unwrap_or(program.len());
        Ok(Some(match &program[..end] {
            [] => Self::ForShell,
            program => Self::For(OsStr::from_bytes(program).into()),
        }))
    }

    /// The program that reads it.
    pub(crate) fn interpreter(&self) -> Option<&Path> {
        match self {
            Self::For(program) => Some(program),
            Self::ForShell => Some(Path::new("/bin/sh")),
            Self::Program => None,
        }
    }

    /// Whether the base in the folder `base` has what reads it: an exec that finds nothing would not say what it missed.
    pub(crate) fn check(&self, base: &Path, image: &str) -> Result<(), ImagerError> {
        match self.interpreter() {
            Some(program) if !has(base, program) => {
                Err(ImagerError::NoInterpreter { image: image.to_owned(), program: program.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

/// Whether there is a file at the path in the root `base`, as a container sees it. What cannot be told is there.
pub(crate) fn has(base: &Path, path: &Path) -> bool {
    match open_beneath(base, path) {
        Err(ContainerError::Open { source, .. }) => {
            !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_say_who_reads_them() {
        let program = |text: &str| Some(Script::For(text.into()));
        for (text, expected) in [
            ("", None),
            ("#!/bin/sh", program("/bin/sh")),
            ("#! \t/usr/bin/env bash\n", program("/usr/bin/env")),
            ("#!/bin/sh\r\n", program("/bin/sh\r")),
            ("#!\necho\n", Some(Script::ForShell)),
            ("echo\n#!/bin/sh\n", Some(Script::ForShell)),
            ("\u{7f}ELF and more", Some(Script::Program)),
        ] {
            assert_eq!(Script::look_at(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn links_lead_where_they_do_in_a_container() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("bin")).unwrap();
        std::fs::write(base.path().join("bin/busybox"), "").unwrap();
        std::os::unix::fs::symlink("/bin/busybox", base.path().join("bin/sh")).unwrap();
        std::os::unix::fs::symlink("/usr/bin/env", base.path().join("bin/env")).unwrap();
        let found = |path: &str| has(base.path(), Path::new(path));
        assert_eq!(
            ["/bin/sh", "bin/sh", "/bin/env", "/bin/sh/x", "/etc/passwd"].map(found),
            [true, true, false, false, false]
        );
    }
}
