//! A proc's log: what its app says, in one file of limited size and a few older ones beside it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Writes to `path` and moves it to `path.1`, `path.1` to `path.2` and so on, before it would grow over its limit.
#[derive(Debug)]
pub(super) struct RotatingLog {
    path: PathBuf,
    max_bytes: u64,
    backups: u32,
    file: File,
    bytes: u64,
}

impl RotatingLog {
    /// Goes on with the file if it is there. `max_bytes` of 0 means no limit.
    pub fn open(path: PathBuf, max_bytes: u64, backups: u32) -> io::Result<Self> {
        let file = open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, max_bytes, backups, file, bytes })
    }

    /// Adds bytes. An app must not stop because its log's disk is full: what cannot be written is dropped.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while self.max_bytes > 0 && self.bytes + bytes.len() as u64 > self.max_bytes {
            // Cut after a line if there is one that still fits, and in the middle of one only if it fits nowhere.
            let room = usize::try_from(self.max_bytes.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
            let room = room.min(bytes.len());
            let fits = match bytes[..room].iter().rposition(|byte| *byte == b'\n') {
                Some(end_of_line) => end_of_line + 1,
                None if self.bytes == 0 => room,
                None => 0,
            };
            let (now, later) = bytes.split_at(fits);
            self.append(now);
            bytes = later;
            if self.rotate().is_err() {
                // If it cannot be moved, the old file goes on.
                break;
            }
        }
        self.append(bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.file.write_all(bytes).is_ok() {
            self.bytes += bytes.len() as u64;
        }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.backups == 0 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.backups).rev() {
                match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            match fs::rename(&self.path, self.numbered(1)) {
                // Somebody removed it to get room, or the new one could not be made the last time.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                moved => moved?,
            }
            self.file = open(&self.path)?;
        }
        self.bytes = 0;
        Ok(())
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_moves_on_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "0000").unwrap();
        let mut log = RotatingLog::open(path.clone(), 10, 2).unwrap();
        for text in ["111111\n", "222222\n", "3\n44\n55555", "5\na line longer than the limit\n66\n7"] {
            log.write(text.as_bytes());
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("log.2"), "ger than t");
        assert_eq!(read("log.1"), "he limit\n");
        assert_eq!(read("log"), "66\n7");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_log_that_somebody_removed_begins_anew_when_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = RotatingLog::open(path.clone(), 10, 1).unwrap();
        log.write(b"removed\n");
        fs::remove_file(&path).unwrap();
        for text in ["one\n", "two\n", "three\n"] {
            log.write(text.as_bytes());
        }
        assert_eq!(fs::read_to_string(dir.path().join("log.1")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn without_backups_it_starts_over_and_without_a_limit_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatingLog::open(dir.path().join("short"), 4, 0).unwrap();
        let mut long = RotatingLog::open(dir.path().join("long"), 0, 1).unwrap();
        for text in ["aaa", "bbb"] {
            log.write(text.as_bytes());
            long.write(text.as_bytes());
        }
        assert_eq!(fs::read_to_string(dir.path().join("short")).unwrap(), "bbb");
        assert_eq!(fs::read_to_string(dir.path().join("long")).unwrap(), "aaabbb");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
