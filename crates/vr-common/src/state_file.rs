//! Small files that say how things stand, for whoever looks after a crash. Each is replaced as a whole, so that nobody ever
//! sees half of one; and once it is there, it can be written on a full disk, too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a file takes at least, and in steps of: blanks at its end keep room for a longer text, in bytes.
pub const ROOM: usize = 1024;

/// Writes aside, syncs, and renames; the file's mode is 0600. Where there is no room for that, a file that is long enough is
/// written over in place, which takes none. The text must be of a kind that blanks at the end do not matter to.
///
/// # Errors
/// Those of the disk. When it is full and the old file too short or not there: that it is full.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let padded = padded(text, ROOM);
    match write_aside(path, &padded) {
        Err(full) if is_full(&full) => overwrite(path, text).map_err(|_| full),
        done => done,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The text with blanks and a line's end up to a multiple of `step` bytes.
fn padded(text: &[u8], step: usize) -> Vec<u8> {
    let mut padded = text.trim_ascii_end().to_vec();
    padded.resize((padded.len() + 1).next_multiple_of(step) - 1, b' ');
    padded.push(b'\n');
    padded
}

fn write_aside(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut aside = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    aside.write_all(text)?;
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

fn overwrite(path: &Path, text: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if text.trim_ascii_end().len() >= length {
        return Err(io::ErrorKind::StorageFull.into());
    }
    file.write_all_at(&padded(text, length), 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_replaced_whole_and_private_with_room_for_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for text in ["one", "two\n"] {
            replace(&path, text.as_bytes()).unwrap();
            let read = fs::read_to_string(&path).unwrap();
            assert_eq!((read.trim_end(), read.len()), (text.trim_end(), ROOM));
        }
        let long = "x".repeat(ROOM);
        replace(&path, long.as_bytes()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * ROOM as u64);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_there_is_written_over_in_its_own_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(overwrite(&path, b"x").is_err(), "nothing to write over");
        replace(&path, b"a longer text than the next").unwrap();
        overwrite(&path, b"short\n").unwrap();
        let read = fs::read_to_string(&path).unwrap();
        assert_eq!((read.trim_end(), read.len()), ("short", ROOM));
        let too_long = "x".repeat(ROOM);
        assert!(overwrite(&path, too_long.as_bytes()).is_err());
        assert!(fs::read_to_string(&path).unwrap().starts_with("short "), "it is as it was");
        fs::write(&path, "old and short").unwrap();
        overwrite(&path, b"{}").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}          \n");
    }
}
