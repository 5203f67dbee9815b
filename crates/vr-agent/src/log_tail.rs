//! The end of a proc's log, across one rotation.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The last `bytes` bytes of the log; what the log itself is too short for comes from the rotated `LOG.1`.
/// Empty when the proc has never written anything.
pub fn read(log: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let newest = end_of(log, bytes)?;
    let missing = bytes - newest.len() as u64;
    if missing == 0 {
        return Ok(newest);
    }
    let mut rotated = log.as_os_str().to_owned();
    rotated.push(".1");
    let mut text = end_of(Path::new(&rotated), missing)?;
    text.extend(newest);
    Ok(text)
}

fn end_of(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_short_log_is_filled_up_from_the_rotated_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(read(&log, 10).unwrap(), b"");
        fs::write(&log, "newest").unwrap();
        assert_eq!(read(&log, 10).unwrap(), b"newest");
        fs::write(dir.path().join("log.1"), "0123456789").unwrap();
        assert_eq!(read(&log, 10).unwrap(), b"6789newest");
        assert_eq!(read(&log, 3).unwrap(), b"est");
        assert_eq!(read(&log, 1000).unwrap(), b"0123456789newest");
        assert_eq!(read(&log, 0).unwrap(), b"");
    }
}
