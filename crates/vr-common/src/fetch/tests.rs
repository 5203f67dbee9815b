//! Tests of [`super`].

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier, Mutex};

use rustix::net::{AddressFamily, SocketType};

use super::*;

const BODY: &[u8] = b"the whole file";

fn md5(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// An HTTP server that gives its answers in turn, one a connection, and closes; requests come out of the channel.
fn serve(answers: Vec<Vec<u8>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    let (tell, requests) = channel();
    thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = tell.send(read_request(&stream));
            let _ = stream.write_all(&answer);
        }
    });
    (address, requests)
}

fn read_request(stream: &TcpStream) -> String {
    let mut request = String::new();
    let mut reader = BufReader::new(stream);
    while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).is_ok_and(|n| n > 0) {}
    request
}

fn answer(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn whole() -> Vec<u8> {
    answer("200 OK", BODY.len(), BODY)
}

fn impatient() -> FetchOptions {
    FetchOptions {
        first_pause: Duration::from_millis(1),
        timeout_idle: Duration::from_secs(10),
        ..FetchOptions::default()
    }
}

/// Everything in a folder, hidden files too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_comes_over_http_with_its_sum() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("missing/folder/build.tar.gz");
    let (address, requests) = serve(vec![whole()]);
    let fetched = fetch(&format!("http://{address}/a/b?c=d"), &target, &impatient()).unwrap();
    assert_eq!(fetched, Fetched { bytes: 14, md5: md5(BODY), downloaded: true });
    assert_eq!(fs::read(&target).unwrap(), BODY);
    assert!(requests.recv().unwrap().starts_with("GET /a/b?c=d HTTP/1.1\r\n"));
    assert_eq!(names(target.parent().unwrap()), ["build.tar.gz"]);
}

#[test]
fn broken_answers_are_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("file");
    let (address, requests) = serve(vec![
        answer("503 Service Unavailable", 0, b""),
        answer("429 Too Many Requests", 0, b""),
        answer("200 OK", BODY.len(), &BODY[..5]),
        Vec::new(),
        whole(),
    ]);
    let fetched = fetch(&format!("http://{address}/file"), &target, &impatient()).unwrap();
    assert_eq!(fetched.bytes, 14);
    assert_eq!(fs::read(&target).unwrap(), BODY);
    assert_eq!(requests.iter().count(), 5);
}

#[test]
fn after_the_last_attempt_the_last_reason_is_given_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("file");
    fs::write(&target, "old").unwrap();
    let (address, _requests) = serve(vec![answer("200 OK", BODY.len(), &BODY[..5]); 2]);
    let options = FetchOptions { attempts: 2, ..impatient() };
    let error = fetch(&format!("http://{address}/file"), &target, &options).unwrap_err();
    assert_eq!(
        crate::exit::chain(&error),
        format!("cannot fetch http://{address}/file (2 attempts): the connection ended after 5 of 14 bytes")
    );
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_missing_file_is_asked_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let (address, requests) = serve(vec![answer("404 Not Found", 0, b""), whole()]);
    let error = fetch(&format!("http://{address}/file"), &dir.path().join("file"), &impatient()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot fetch http://{address}/file: the server answered 404 Not Found")
    );
    assert!(requests.recv().is_ok());
    assert!(requests.try_recv().is_err());
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_wrong_sum_is_final_and_names_both_sums_but_no_password() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = "0123456789abcdef0123456789abcdef";
    let (address, requests) = serve(vec![whole(), whole()]);
    let options = FetchOptions { md5: Some(wrong.to_uppercase()), ..impatient() };
    let url = format!("http://deploy:hunter2@{address}/file?signature=s3cret");
    let error = fetch(&url, &dir.path().join("file"), &options).unwrap_err();
    let sum = md5(BODY);
    assert_eq!(
        error.to_string(),
        format!("http://deploy:***@{address}/file?*** has the md5 sum {sum}, expected {wrong}")
    );
    let request = requests.recv().unwrap().to_ascii_lowercase();
    assert!(request.contains("authorization: basic zgvwbg95omh1bnrlcji="), "{request}");
    assert!(requests.try_recv().is_err());
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_server_that_falls_silent_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let (done, wait_until_done) = channel::<()>();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_request(&stream);
        stream.write_all(&answer("200 OK", BODY.len(), &BODY[..5])).unwrap();
        // The connection stays open until the client has given up.
        let _ = wait_until_done.recv();
    });
    let dir = tempfile::tempdir().unwrap();
    let options =
        FetchOptions { attempts: 1, timeout_idle: Duration::from_millis(200), ..FetchOptions::default() };
    let error = fetch(&url, &dir.path().join("file"), &options).unwrap_err();
    drop(done);
    server.join().unwrap();
    assert!(
        matches!(&error, FetchError::Transfer { source: TransferError::TimedOut(_), .. }),
        "{}",
        crate::exit::chain(&error)
    );
    assert!(names(dir.path()).is_empty());
}

#[test]
fn nobody_listening_is_a_clear_error() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddrV4::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = FetchOptions { attempts: 2, ..impatient() };
    let error = fetch(&format!("http://{address}/x"), &dir.path().join("x"), &options).unwrap_err();
    let text = crate::exit::chain(&error);
    assert!(text.starts_with(&format!("cannot fetch http://{address}/x (2 attempts): ")), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn too_large_files_are_refused_announced_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut unannounced = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    unannounced.extend_from_slice(BODY);
    for answer in [whole(), unannounced] {
        let (address, _requests) = serve(vec![answer]);
        let options = FetchOptions { max_bytes: 10, ..impatient() };
        let url = format!("http://{address}/file");
        let error = fetch(&url, &dir.path().join("file"), &options).unwrap_err();
        assert_eq!(error.to_string(), format!("{url} is larger than 10 bytes, the most that is accepted"));
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn paths_and_file_urls_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("with space");
    fs::write(&source, BODY).unwrap();
    let target = dir.path().join("target");
    let url = Url::from_file_path(&source).unwrap();
    assert!(url.as_str().contains("%20"));
    for text in [source.to_str().unwrap(), url.as_str()] {
        let options = FetchOptions::with_md5(Some(&md5(BODY)));
        assert_eq!(fetch(text, &target, &options).unwrap().bytes, 14);
        assert_eq!(fs::read(&target).unwrap(), BODY);
        fs::remove_file(&target).unwrap();
    }
    let missing = dir.path().join("missing");
    let error = fetch(missing.to_str().unwrap(), &target, &FetchOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot read {}", missing.display()));
    let error = fetch(dir.path().to_str().unwrap(), &target, &FetchOptions::default()).unwrap_err();
    assert!(crate::exit::chain(&error).ends_with("it is not a file"));
    assert_eq!(names(dir.path()), ["with space"]);
}

#[test]
fn bad_sources_and_sums_are_refused() {
    let target = Path::new("/nonexistent/target");
    let refuse = |source: &str| fetch(source, target, &FetchOptions::default()).unwrap_err().to_string();
    assert_eq!(
        refuse("ftp://user:pass@host/x"),
        "cannot fetch \"ftp://user:***@host/x\": expected an http, https or file URL or a path"
    );
    assert_eq!(refuse(""), "cannot fetch \"\": expected an http, https or file URL or a path");
    assert_eq!(
        refuse("file://otherhost/x"),
        "cannot fetch \"file://otherhost/x\": expected file:///path on this machine"
    );
    let error = fetch("/x", target, &FetchOptions::with_md5(Some("abc"))).unwrap_err();
    assert_eq!(error.to_string(), "the md5 sum \"abc\" expected for /x is not 32 hexadecimal digits");
}

#[test]
fn credentials_are_never_shown() {
    for (url, shown) in [
        ("https://user:pass@host/path", "https://user:***@host/path"),
        ("https://token@host/path", "https://***@host/path"),
        ("https://user:p@ss@host/path", "https://user:***@host/path"),
        ("https://host/path?X-Amz-Signature=abc#v1", "https://host/path?***#v1"),
        ("ssh://git@host/path", "ssh://git@host/path"),
        ("ssh://git:pw@host/path", "ssh://git:***@host/path"),
        ("git@host:team/app.git", "git@host:team/app.git"),
        ("/srv/a@b:c", "/srv/a@b:c"),
        ("https://host/a@b", "https://host/a@b"),
    ] {
        assert_eq!(without_credentials(url), shown);
    }
}

#[test]
fn a_cached_file_is_fetched_only_when_it_is_missing_or_differs() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let target = dir.path().join("cache/target");
    fs::write(&source, "one").unwrap();
    let get = |md5: Option<&str>| {
        fetch_cached(source.to_str().unwrap(), &target, &FetchOptions::with_md5(md5)).map(|f| f.downloaded)
    };
    assert!(get(None).unwrap());
    assert!(!get(None).unwrap());
    assert!(!get(Some(&md5(b"one"))).unwrap());
    fs::write(&source, "two").unwrap();
    assert!(!get(None).unwrap());
    assert!(get(Some(&md5(b"two"))).unwrap());
    assert_eq!(fs::read_to_string(&target).unwrap(), "two");
    assert!(matches!(get(Some(&md5(b"three"))), Err(FetchError::Md5Mismatch { .. })));
    assert_eq!(fs::read_to_string(&target).unwrap(), "two");
    assert_eq!(names(target.parent().unwrap()), [".target.lock", ".target.sum", "target"]);
}

#[test]
fn a_file_of_the_same_name_from_elsewhere_is_not_taken_for_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("cache/target");
    let source = |name: &str| {
        fs::create_dir_all(dir.path().join(name)).unwrap();
        let path = dir.path().join(name).join("target");
        fs::write(&path, name).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (one, two) = (source("one"), source("two"));
    let get =
        |from: &str, md5: Option<&str>| fetch_cached(from, &target, &FetchOptions::with_md5(md5)).unwrap();
    assert_eq!(known_md5(&one, &target), None);
    for (from, md5_given, expected, downloaded) in [
        (&one, None, "one", true),
        (&one, None, "one", false),
        (&two, None, "two", true),
        (&one, None, "one", true),
        (&one, Some(md5(b"one")), "one", false),
        // The sum says more than the place.
        (&two, Some(md5(b"one")), "one", false),
        (&one, None, "one", false),
    ] {
        let fetched = get(from, md5_given.as_deref());
        assert_eq!((fetched.md5, fetched.downloaded), (md5(expected.as_bytes()), downloaded), "{expected}");
        assert_eq!(fs::read_to_string(&target).unwrap(), expected);
    }
    assert_eq!(known_md5(&one, &target), Some(md5(b"one")));
    assert_eq!(known_md5(&two, &target), None);
    // What somebody put there by hand is taken as it is.
    fs::write(&target, "by hand").unwrap();
    assert_eq!(known_md5(&one, &target), None);
    let fetched = get(&two, None);
    assert_eq!((fetched.md5, fetched.downloaded), (md5(b"by hand"), false));
}

#[test]
fn a_file_that_did_not_change_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::write(&source, "content").unwrap();
    let sum = md5(b"content");
    let options = FetchOptions::with_md5(Some(&sum));
    fetch_cached(source.to_str().unwrap(), &target, &options).unwrap();
    let record = dir.path().join(".target.sum");
    let other = "0".repeat(32);
    fs::write(&record, fs::read_to_string(&record).unwrap().replace(&sum, &other)).unwrap();
    // The record is believed, so nobody looked.
    let fetched = fetch_cached(source.to_str().unwrap(), &target, &FetchOptions::with_md5(Some(&other)));
    assert_eq!(fetched.unwrap().md5, other);
    // A record that makes no sense is none.
    for nonsense in ["", "x", "a b of c\n"] {
        fs::write(&record, nonsense).unwrap();
        let fetched = fetch_cached(source.to_str().unwrap(), &target, &options).unwrap();
        assert_eq!((fetched.md5, fetched.downloaded), (sum.clone(), false));
    }
}

#[test]
fn many_callers_for_one_file_fetch_it_once() {
    const CALLERS: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    let (address, requests) = serve(vec![whole(); CALLERS]);
    let url = format!("http://{address}/file");
    let barrier = Barrier::new(CALLERS);
    let downloads = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                barrier.wait();
                let fetched = fetch_cached(&url, &target, &impatient()).unwrap();
                assert_eq!(fs::read(&target).unwrap(), BODY);
                downloads.fetch_add(u64::from(fetched.downloaded), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(downloads.into_inner(), 1);
    assert_eq!(requests.try_iter().count(), 1);
}

#[test]
fn a_file_whose_fetch_ended_before_its_record_is_not_taken_for_one_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::write(&one, "one").unwrap();
    fs::write(&two, "two").unwrap();
    let target = dir.path().join("cache/target");
    let fetch_from =
        |source: &Path| fetch_cached(source.to_str().unwrap(), &target, &FetchOptions::default());
    // The record cannot be written, which ends a fetch where it might be killed.
    let obstacle = dir.path().join("cache/.target.sum.new");
    fs::create_dir_all(&obstacle).unwrap();
    assert!(fetch_from(&one).is_err());
    assert_eq!(fs::read_to_string(&target).unwrap(), "one");
    fs::remove_dir(&obstacle).unwrap();
    assert!(fetch_from(&two).unwrap().downloaded);
    assert_eq!(fs::read_to_string(&target).unwrap(), "two");
    // Nor is it fetched again when it is the right one.
    fs::create_dir(&obstacle).unwrap();
    assert!(fetch_from(&one).is_err());
    fs::remove_dir(&obstacle).unwrap();
    assert!(!fetch_from(&one).unwrap().downloaded);
    assert_eq!(names(&dir.path().join("cache")), [".target.lock", ".target.sum", "target"]);
    // One that did not come after all says nothing about the one that is there.
    let options = FetchOptions::default();
    let gone = fetch_with(two.to_str().unwrap(), &target, &options, |file| {
        Record::announce(two.to_str().unwrap(), &target, &file.metadata()?)?;
        Err(io::Error::other("killed"))
    });
    assert!(gone.is_err());
    assert!(!fetch_from(&one).unwrap().downloaded);
    assert!(fetch_from(&two).unwrap().downloaded);
}

#[test]
fn what_killed_fetches_left_is_removed_and_what_live_ones_write_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fs::write(dir.path().join(".target.part-0123456789abcdef"), "half").unwrap();
    // Of another target.
    let other_lock = dir.path().join(".target.part-1.lock");
    fs::write(&other_lock, "").unwrap();
    let mut first = AsideFile::create(&target).unwrap();
    first.file().write_all(b"first").unwrap();
    let mut second = AsideFile::create(&target).unwrap();
    second.file().write_all(b"second").unwrap();
    assert_eq!(names(dir.path()).len(), 3);
    fs::remove_file(other_lock).unwrap();
    second.place().unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "second");
    first.place().unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "first");
    assert_eq!(names(dir.path()), ["target"]);
}

#[test]
fn progress_starts_at_nothing_and_ends_with_everything() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let for_callback = Arc::clone(&seen);
    let dir = tempfile::tempdir().unwrap();
    let (address, _requests) = serve(vec![whole()]);
    let options = FetchOptions {
        progress: Progress::Callback(Arc::new(move |bytes, total| {
            for_callback.lock().unwrap().push((bytes, total));
        })),
        ..impatient()
    };
    fetch(&format!("http://{address}/file"), &dir.path().join("file"), &options).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.first(), Some(&(0, Some(14))));
    assert_eq!(seen.last(), Some(&(14, Some(14))));
}

#[test]
fn pauses_grow_and_are_bounded() {
    let first = Duration::from_millis(100);
    for attempt in 1..40 {
        let pause = pause_after(attempt, first);
        let doubled = first.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_PAUSE);
        assert!(pause >= doubled / 2 && pause <= doubled * 3 / 2, "{attempt}: {pause:?}");
    }
}
