//! A proc's log as its readers see it: its end, any part of it, and what is added from now on, across one rotation.
//!
//! vrun writes the log and moves it to `LOG.1` when it is full; nothing here changes either file. Everything but
//! [`Follower`] reads files at once: call it where that is fine.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The most that [`Follower`] gives at once, in bytes.
const PIECE: usize = 64 * 1024;
/// How soon [`Follower`] looks again after something came.
const PAUSE_LEAST: Duration = Duration::from_millis(50);
/// How soon it looks again when nothing comes.
const PAUSE_MOST: Duration = Duration::from_millis(200);

/// The last `bytes` bytes of the log; what the log itself is too short for comes from the rotated `LOG.1`.
/// Empty when the proc has never written anything.
pub fn read(log: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let newest = LogFile::open(log)?;
    let mut end = newest.as_ref().map_or(Ok(Vec::new()), |newest| newest.end(bytes))?;
    let missing = bytes.saturating_sub(end.len() as u64);
    if missing == 0 {
        return Ok(end);
    }
    let Some(older) = LogFile::open(&rotated(log))? else { return Ok(end) };
    if newest.is_some_and(|newest| newest.identity == older.identity) {
        // It was moved on just now.
        return Ok(end);
    }
    let mut text = older.end(missing)?;
    text.append(&mut end);
    Ok(text)
}

/// At most `length` bytes of the log itself, from `offset` on; empty from its end on, and when there is no log.
pub fn read_range(log: &Path, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    match LogFile::open(log)? {
        Some(file) => file.read(Window { start: offset, length }),
        None => Ok(Vec::new()),
    }
}

fn rotated(log: &Path) -> PathBuf {
    let mut name = OsString::from(log);
    name.push(".1");
    PathBuf::from(name)
}

/// A log that is open, so that its size and what is read belong together.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    size: u64,
    identity: Identity,
}

impl LogFile {
    /// Opens a log; none when there is no file. Whoever could put a link or a pipe in its place must not have other files
    /// read, or the reader wait.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let there = file.metadata()?;
        if !there.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        Ok(Some(Self { file, size: there.len(), identity: (there.dev(), there.ino()) }))
    }

    /// The last `bytes` bytes that it had when it was opened.
    fn end(&self, bytes: u64) -> io::Result<Vec<u8>> {
        self.read(Window { start: self.size.saturating_sub(bytes), length: bytes.min(self.size) })
    }

    /// How long it was when it was opened, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads a part, or as much of it as there is.
    pub fn read(&self, window: Window) -> io::Result<Vec<u8>> {
        let mut file = &self.file;
        if window.start >= file.metadata()?.len() {
            // It may be further than any file goes.
            return Ok(Vec::new());
        }
        file.seek(SeekFrom::Start(window.start))?;
        let mut text = Vec::new();
        file.take(window.length).read_to_end(&mut text)?;
        Ok(text)
    }
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// An offset and a length that do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected an offset and a length of 0 or more, or an offset below 0 and the length 0")]
pub struct BadWindow;

impl Window {
    /// As much of it as the file had when it was opened.
    pub fn within(self, file: &LogFile) -> Self {
        Self { length: self.length.min(file.size.saturating_sub(self.start)), ..self }
    }

    /// What Supervisor's `readProcessStdoutLog` and `readLog` read of a file of `size` bytes: an offset below 0 counts from
    /// the end, and the length 0 means up to the end.
    ///
    /// # Errors
    /// [`BadWindow`].
    pub fn of_read(size: u64, offset: i64, length: i64) -> Result<Self, BadWindow> {
        match (u64::try_from(offset), u64::try_from(length)) {
            (Ok(start), Ok(0)) => Ok(Self { start, length: size.saturating_sub(start) }),
            (Ok(start), Ok(length)) => Ok(Self { start, length }),
            (Err(_), Ok(0)) => {
                let back = offset.unsigned_abs();
                Ok(Self { start: size.saturating_sub(back), length: back.min(size) })
            }
            (_, _) => Err(BadWindow),
        }
    }

    /// What Supervisor's `tailProcessStdoutLog` reads of a file of `size` bytes, and whether more was written than the
    /// reader asked for. Both oddities are Supervisor's: an offset that has been passed is moved to the last
    /// `length` bytes, and so is one near the end.
    pub fn of_tail(size: u64, offset: i64, length: i64) -> (Self, bool) {
        let end = i64::try_from(size).unwrap_or(i64::MAX);
        let (mut offset, mut length) = (offset, length);
        let overflow = end > offset.saturating_add(length);
        if overflow {
            offset = end - 1;
        }
        if offset.saturating_add(length) > end {
            if offset > end - 1 {
                length = 0;
            }
            offset = end.saturating_sub(length);
        }
        let from_zero = |number: i64| u64::try_from(number).unwrap_or(0);
        (Self { start: from_zero(offset), length: from_zero(length) }, overflow)
    }
}

/// A reader of what is added to a log, which it follows across rotations. It ends when the proc is gone and everything
/// that it wrote has been read.
pub struct Follower {
    is_there: Box<dyn Fn() -> bool + Send + Sync>,
    place: Option<Place>,
    /// A look at the disk, kept so that nothing is lost when nobody waits for it any more.
    look: Option<JoinHandle<(Place, io::Result<Vec<u8>>)>>,
    pause: Duration,
    /// Looks in a row that found the proc gone.
    gone: u32,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Follower {
    /// Of the log at `log`, which may not exist yet, beginning at most `back` bytes before its end. `is_there` says
    /// whether its proc exists; it is asked often, and must not wait.
    pub fn new(log: PathBuf, back: u64, is_there: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let place = Place { log, back: Some(back), open: None };
        Self { is_there: Box::new(is_there), place: Some(place), look: None, pause: PAUSE_LEAST, gone: 0 }
    }

    /// The next bytes, or nothing once the proc is gone. Waits for as long as it takes; when the wait is given up, nothing
    /// is lost.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.look.is_none() {
                let Some(mut place) = self.place.take() else { return Ok(None) };
                self.look = Some(tokio::task::spawn_blocking(move || {
                    let found = place.look();
                    (place, found)
                }));
            }
            let Some(look) = &mut self.look else { continue };
            let (place, found) = look.await.map_err(io::Error::other)?;
            (self.look, self.place) = (None, Some(place));
            let found = found?;
            if !found.is_empty() {
                (self.pause, self.gone) = (PAUSE_LEAST, 0);
                return Ok(Some(found));
            }
            if (self.is_there)() {
                self.gone = 0;
            } else {
                self.gone += 1;
            }
            // Not at once: it may have written something just before it went.
            if self.gone > 1 {
                self.place = None;
                return Ok(None);
            }
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MOST);
        }
    }
}

/// How far a [`Follower`] is.
#[derive(Debug)]
struct Place {
    log: PathBuf,
    /// How far before the end to begin, until it has begun.
    back: Option<u64>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: Identity,
    position: u64,
}

/// Device and inode.
type Identity = (u64, u64);

impl Open {
    fn at(path: &Path) -> io::Result<Option<Self>> {
        let Some(LogFile { file, identity, .. }) = LogFile::open(path)? else { return Ok(None) };
        Ok(Some(Self { file, identity, position: 0 }))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        if self.size()? < self.position {
            // It was cleared.
            self.position = 0;
        }
        let mut piece = vec![0; PIECE];
        let length = self.file.read_at(&mut piece, self.position)?;
        self.position += length as u64;
        piece.truncate(length);
        Ok(piece)
    }
}

fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match std::fs::metadata(path) {
        Ok(there) => Ok(Some((there.dev(), there.ino()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl Place {
    /// What there is to read now; empty when nothing has been added.
    fn look(&mut self) -> io::Result<Vec<u8>> {
        if let Some(back) = self.back {
            self.open = self.begin(back)?;
            if self.open.is_none() {
                return Ok(Vec::new());
            }
            self.back = None;
        }
        loop {
            let Some(open) = &mut self.open else {
                self.open = Open::at(&self.log)?;
                if self.open.is_none() {
                    return Ok(Vec::new());
                }
                continue;
            };
            let piece = open.read()?;
            if !piece.is_empty() {
                return Ok(piece);
            }
            match identity(&self.log)? {
                Some(now) if now != open.identity => {}
                _ => return Ok(Vec::new()),
            }
            // It was moved away. What was written between the read and the move comes first.
            let piece = open.read()?;
            if !piece.is_empty() {
                return Ok(piece);
            }
            let older = rotated(&self.log);
            let next = match identity(&older)? {
                // It was moved twice meanwhile.
                Some(other) if other != open.identity => &older,
                _ => &self.log,
            };
            self.open = Open::at(next)?;
        }
    }

    /// Opens what holds the byte `back` bytes before the log's end, which may be in the rotated file.
    fn begin(&self, back: u64) -> io::Result<Option<Open>> {
        let Some(mut newest) = Open::at(&self.log)? else { return Ok(None) };
        let size = newest.size()?;
        if size < back
            && let Some(mut older) = Open::at(&rotated(&self.log))?
            && older.identity != newest.identity
        {
            older.position = older.size()?.saturating_sub(back - size);
            return Ok(Some(older));
        }
        newest.position = size.saturating_sub(back);
        Ok(Some(newest))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::timeout;

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

    #[test]
    fn links_and_pipes_are_no_logs() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("secret", &log).unwrap();
        assert!(read(&log, 10).is_err() && read_range(&log, 0, 10).is_err());
        fs::remove_file(&log).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &log, rustix::fs::Mode::RUSR).unwrap();
        assert!(read(&log, 10).is_err());
        fs::remove_file(&log).unwrap();
        // As a rotation looks that comes in between.
        fs::write(&log, "once").unwrap();
        fs::hard_link(&log, dir.path().join("log.1")).unwrap();
        assert_eq!(read(&log, 10).unwrap(), b"once");
    }

    #[test]
    fn any_part_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(read_range(&log, 3, 4).unwrap(), b"");
        fs::write(&log, "0123456789").unwrap();
        assert_eq!(read_range(&log, 3, 4).unwrap(), b"3456");
        assert_eq!(read_range(&log, 8, 4).unwrap(), b"89");
        assert_eq!(read_range(&log, 10, 4).unwrap(), b"");
        assert_eq!(read_range(&log, u64::MAX / 4, u64::MAX).unwrap(), b"");
    }

    #[test]
    fn supervisors_offsets_and_lengths() {
        let read = |offset, length| Window::of_read(10, offset, length).map(|w| (w.start, w.length));
        assert_eq!(read(0, 0), Ok((0, 10)));
        assert_eq!(read(4, 0), Ok((4, 6)));
        assert_eq!(read(4, 3), Ok((4, 3)));
        assert_eq!(read(12, 0), Ok((12, 0)));
        assert_eq!(read(-4, 0), Ok((6, 4)));
        assert_eq!(read(-40, 0), Ok((0, 10)));
        assert_eq!(read(-4, 1), Err(BadWindow));
        assert_eq!(read(4, -1), Err(BadWindow));
        assert_eq!(read(i64::MIN, 0), Ok((0, 10)));

        // As Supervisor 4.2 answers.
        let tail = |offset, length| {
            let (window, overflow) = Window::of_tail(10, offset, length);
            (window.start, window.length, overflow)
        };
        assert_eq!(tail(0, 4), (6, 4, true));
        assert_eq!(tail(0, 1), (9, 1, true));
        assert_eq!(tail(0, 0), (9, 0, true));
        assert_eq!(tail(6, 4), (6, 4, false));
        assert_eq!(tail(8, 4), (6, 4, false));
        assert_eq!(tail(10, 4), (10, 0, false));
        assert_eq!(tail(0, 40), (0, 40, false));
        assert_eq!(tail(-5, 3), (7, 3, true));
        assert_eq!(tail(i64::MAX, i64::MAX), (10, 0, false));
        assert_eq!(Window::of_tail(0, 0, 40).0.start, 0);
    }

    /// A follower of `dir/log`, and a switch that ends its proc.
    fn follower(dir: &Path, back: u64) -> (Follower, Arc<AtomicBool>) {
        let there = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&there);
        let follower = Follower::new(dir.join("log"), back, move || asked.load(Ordering::SeqCst));
        (follower, there)
    }

    /// Reads until it has seen as much as is expected, which has to be just that.
    async fn expect(follower: &mut Follower, expected: &str) {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            let piece = timeout(Duration::from_secs(20), follower.next()).await.expect(expected).unwrap();
            seen.extend(piece.expect("not the end"));
        }
        assert_eq!(String::from_utf8(seen).unwrap(), expected);
    }

    fn append(path: &Path, text: &str) {
        File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn a_log_is_followed_across_rotations_to_the_end_of_its_proc() {
        let dir = tempfile::tempdir().unwrap();
        let (log, older) = (dir.path().join("log"), dir.path().join("log.1"));
        append(&log, "0123456789");
        let (mut follower, there) = follower(dir.path(), 4);
        expect(&mut follower, "6789").await;
        append(&log, "one\n");
        expect(&mut follower, "one\n").await;
        append(&log, "two\n");
        fs::rename(&log, &older).unwrap();
        append(&log, "three\n");
        expect(&mut follower, "two\nthree\n").await;
        // Twice between two looks.
        append(&log, "four\n");
        fs::rename(&log, &older).unwrap();
        append(&log, "five\n");
        fs::rename(&log, &older).unwrap();
        append(&log, "six\n");
        expect(&mut follower, "four\nfive\nsix\n").await;
        File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        append(&log, "!\n");
        expect(&mut follower, "!\n").await;
        append(&log, "last words");
        there.store(false, Ordering::SeqCst);
        fs::rename(&log, dir.path().join("kept")).unwrap();
        expect(&mut follower, "last words").await;
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn one_that_is_not_there_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (mut follower, _there) = follower(dir.path(), 100);
        assert!(timeout(Duration::from_millis(120), follower.next()).await.is_err());
        append(&dir.path().join("log"), "begin\n");
        expect(&mut follower, "begin\n").await;
    }

    #[tokio::test]
    async fn it_begins_in_the_rotated_file_when_the_log_is_short() {
        let dir = tempfile::tempdir().unwrap();
        append(&dir.path().join("log.1"), "0123456789");
        append(&dir.path().join("log"), "new");
        let (mut follower, there) = follower(dir.path(), 5);
        expect(&mut follower, "89new").await;
        there.store(false, Ordering::SeqCst);
        assert_eq!(follower.next().await.unwrap(), None);
    }
}
