//! Files on a host. They are written aside, checked, and then put in place at once.

use std::path::Path;

use bytes::Bytes;

use crate::command::{Command, Output, invalid};
use crate::error::SshError;
use crate::host::SshHost;

/// As whom something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// The user who logs in.
    User,
    /// Root, by sudo when the host's settings say so.
    Root,
}

/// The exit code of our scripts for a file that is not there.
const ABSENT: u32 = 44;

/// Writes its input to the file `$1` with the mode `$2`, when there are `$3` bytes of it: less would mean that somebody
/// went away in the middle.
const WRITE: &str = r#"
set -eu
if [ -d "$1" ]; then echo "$1 is a folder" >&2; exit 1; fi
umask 077
t=$(mktemp "$1.XXXXXXXX")
trap 'rm -f "$t"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$t"
n=$(wc -c <"$t")
if [ "$n" -ne "$3" ]; then echo "only $n of $3 bytes arrived" >&2; exit 1; fi
chmod "$2" "$t"
sync "$t" 2>/dev/null || sync
mv -f "$t" "$1"
trap - EXIT
sync "${1%/*}/" 2>/dev/null || sync
"#;

/// Ends with 44 when there is no `$1`. To somebody who may not look into its folder, everything seems to be missing.
const FIND: &str = r#"
if [ ! -e "$1" ] && [ ! -L "$1" ]; then
    case $(LC_ALL=C ls -d "$1" 2>&1) in *"No such file"* | *"Not a directory"*) exit 44 ;; esac
    ls -d "$1" >/dev/null || exit 1
fi
"#;

/// Gives at most `$2` bytes of the file `$1`.
const READ: &str = r#"
if [ ! -f "$1" ]; then echo "$1 is no file" >&2; exit 1; fi
exec head -c "$2" <"$1"
"#;

impl SshHost {
    /// Writes a file, at once under its final name. Its folder has to exist; what has the name before is replaced, a
    /// link as well.
    ///
    /// # Errors
    /// When it was not written, or nobody knows.
    pub async fn write_file(
        &self,
        path: &Path,
        content: impl Into<Bytes>,
        mode: u32,
        who: As,
    ) -> Result<(), SshError> {
        let content = content.into();
        let (length, mode) = (content.len().to_string(), format!("{mode:o}"));
        let command = script("writing", path, WRITE, [&mode, &length], who)?;
        self.check(command.input(content)).await?;
        Ok(())
    }

    /// Reads a file of at most so many bytes; `None` when there is none.
    ///
    /// # Errors
    /// When it is longer, or cannot be read.
    pub async fn read_file(&self, path: &Path, limit: usize, who: As) -> Result<Option<Vec<u8>>, SshError> {
        let one_more = limit.saturating_add(1);
        let command = script("reading", path, &format!("{FIND}{READ}"), [&one_more.to_string()], who)?;
        let output = self.run(command.output_limit(one_more)).await?;
        let Some(output) = unless_absent(output)? else { return Ok(None) };
        if output.stdout.len() > limit {
            let path = path.display().to_string();
            return Err(SshError::TooLong { host: self.name().to_owned(), path, limit });
        }
        Ok(Some(output.stdout))
    }

    /// Removes a file or a link, if it is there.
    ///
    /// # Errors
    /// When it is still there, or nobody knows.
    pub async fn remove(&self, path: &Path, who: As) -> Result<(), SshError> {
        self.check(script("removing", path, r#"exec rm -f -- "$1""#, [], who)?).await?;
        Ok(())
    }

    /// Whether there is anything with this name.
    ///
    /// # Errors
    /// When nobody knows.
    pub async fn exists(&self, path: &Path, who: As) -> Result<bool, SshError> {
        let output = self.run(script("looking for", path, FIND, [], who)?).await?;
        Ok(unless_absent(output)?.is_some())
    }
}

fn unless_absent(output: Output) -> Result<Option<Output>, SshError> {
    if output.status.code() == Some(ABSENT) { Ok(None) } else { output.expect_success().map(Some) }
}

/// A script of ours, for a path that can have anything in it.
fn script<const N: usize>(
    what: &str,
    path: &Path,
    script: &str,
    arguments: [&str; N],
    who: As,
) -> Result<Command, SshError> {
    if !path.is_absolute() {
        return Err(invalid(&path.to_string_lossy(), "the path does not begin with a slash"));
    }
    let command = Command::new("/bin/sh").args(["-c", script, "sh"]).arg(path).args(arguments);
    let command = command.named(format!("{what} {}", path.display()));
    Ok(if who == As::Root { command.as_root() } else { command })
}
