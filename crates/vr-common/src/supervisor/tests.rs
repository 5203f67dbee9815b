//! The client against a server made here, which says what it is told to; the real Supervisor's part is in the
//! tests of the listener.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::exit::chain;
use crate::hash::tests::vectors;
use crate::xmlrpc::{Call, read_call, write_fault, write_response};

/// A request as it arrived: its first line and headers, and the call.
struct Request {
    head: String,
    call: Call,
}

fn read_request(stream: impl Read) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.to_lowercase().split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { head, call: read_call(&body).unwrap() })
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn answer(value: &Value) -> String {
    http("200 OK", &write_response(value).unwrap())
}

/// Answers one connection after the other with the given texts; an empty one is a closed connection.
fn serve<S: Read + Write>(
    connections: impl Iterator<Item = S> + Send + 'static,
    answers: Vec<String>,
) -> mpsc::Receiver<Request> {
    let (requests, received) = mpsc::channel();
    thread::spawn(move || {
        // In this order, or it would wait for one connection too many.
        for (answer, mut stream) in answers.into_iter().zip(connections) {
            if let Some(request) = read_request(&mut stream) {
                let _ = requests.send(request);
                let _ = stream.write_all(answer.as_bytes());
            }
        }
    });
    received
}

fn tcp_server(answers: Vec<String>) -> (String, mpsc::Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // More answers than connections are no harm: the listener goes with the test's process.
    let connections = std::iter::from_fn(move || listener.accept().ok().map(|(stream, _)| stream));
    (url, serve(connections, answers))
}

fn infos() -> Value {
    let infos = vectors()["supervisor_process_info"].as_object().unwrap().values().cloned().collect();
    Value::from_json("infos", &Json::Array(infos)).unwrap()
}

#[test]
fn infos_are_read_over_tcp_with_a_login() {
    let (url, requests) = tcp_server(vec![answer(&infos())]);
    let login = Login { username: "me".into(), password: Secret::new("s3cret:") };
    let client = SupervisorClient::new(&url, Some(&login)).unwrap();
    let infos = client.all_process_info().unwrap();
    assert_eq!(infos.iter().map(|info| info.pid).collect::<Vec<_>>(), [5556, 0]);
    let request = requests.recv().unwrap();
    assert!(request.head.starts_with("POST /RPC2 HTTP/1.1\r\n"), "{}", request.head);
    let expected = format!("basic {}", STANDARD.encode("me:s3cret:"));
    assert!(request.head.contains(&expected) || request.head.contains(&expected.replace("basic", "Basic")));
    assert_eq!(request.call, Call { method: "supervisor.getAllProcessInfo".into(), params: vec![] });
}

#[test]
fn infos_are_read_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("supervisor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let connections = std::iter::from_fn(move || listener.accept().ok().map(|(stream, _)| stream));
    let requests = serve(connections, vec![answer(&infos())]);
    let client = SupervisorClient::new(&format!("unix://{}", path.display()), None).unwrap();
    assert_eq!(client.all_process_info().unwrap().len(), 2);
    let head = requests.recv().unwrap().head;
    assert!(head.starts_with("POST /RPC2 HTTP/1.1\r\n") && !head.to_lowercase().contains("authorization"));
}

#[test]
fn an_info_keeps_what_it_does_not_know_and_becomes_the_published_document() {
    let infos = vectors()["supervisor_process_info"].clone();
    for case in vectors()["proc_publisher"].as_array().unwrap() {
        for published in case["published"].as_array().unwrap() {
            let mut expected = published["message"].as_object().unwrap().clone();
            if expected.contains_key("payload_headers") {
                continue;
            }
            expected.remove("event");
            let raw = &infos[expected["name"].as_str().unwrap()];
            let info: ProcessInfo = serde_json::from_value(raw.clone()).unwrap();
            assert_eq!(serde_json::to_value(&info).unwrap(), *raw);
            assert_eq!(serde_json::to_value(info.document("somewhere")).unwrap(), Json::Object(expected));
        }
    }
}

#[test]
fn what_supervisor_does_not_say_is_no_time_and_no_error() {
    let info = serde_json::json!({
        "name": "a.b", "state": 31, "statename": "LIMBO", "start": 0, "stop": null, "spawnerr": null
    });
    let document = serde_json::from_value::<ProcessInfo>(info).unwrap().document("h");
    assert_eq!((document.start_time, document.stop_time, document.now), (None, None, None));
    assert_eq!((document.state, document.statename), (31, ProcState::Unknown));
    assert_eq!((document.jsname.as_str(), document.id.as_str()), ("adotb", "h-a.b"));
}

#[test]
fn a_call_is_tried_twice() {
    let (url, requests) = tcp_server(vec![String::new(), answer(&infos())]);
    assert!(SupervisorClient::new(&url, None).unwrap().all_process_info().is_ok());
    assert_eq!(requests.iter().count(), 2);

    let (url, requests) = tcp_server(vec![String::new(), String::new(), answer(&infos())]);
    let error = SupervisorClient::new(&url, None).unwrap().all_process_info().unwrap_err();
    assert!(matches!(error, SupervisorError::Unreachable { .. }), "{error:?}");
    assert_eq!(requests.try_iter().count(), 2);
}

#[test]
fn faults_and_nonsense_are_told_apart_and_not_tried_again() {
    let fault = |code, message: &str| http("200 OK", &write_fault(&Fault { code, message: message.into() }));
    for (given, expected) in [
        (fault(fault::BAD_NAME, "BAD_NAME: x"), "gave: fault 10: BAD_NAME: x"),
        (http("401 Unauthorized", ""), "the HTTP status 401 (wrong user name or password)"),
        (http("404 Not Found", "<html/>"), "404 (nothing speaks XML-RPC there)"),
        (http("200 OK", "<html/>"), "expected <methodResponse>, found <html>"),
        (answer(&Value::from("hello")), "gave something else than a process info"),
    ] {
        let (url, requests) = tcp_server(vec![given, answer(&infos())]);
        let error = SupervisorClient::new(&url, None).unwrap().process_info("x").unwrap_err();
        let expected = expected.trim_start_matches("gave: ");
        let text = chain(&error);
        assert!(text.contains(expected) && text.contains(&url), "{text}");
        assert_eq!(error.is_fault(fault::BAD_NAME), expected.contains("BAD_NAME"));
        assert_eq!(requests.recv().unwrap().call.params, ["x".into()]);
        assert!(requests.try_recv().is_err(), "{text}: tried again");
    }
}

#[test]
fn what_is_already_so_is_no_error() {
    let fault = |code| http("200 OK", &write_fault(&Fault { code, message: "no".into() }));
    let (url, _requests) =
        tcp_server(vec![fault(fault::ALREADY_STARTED), fault(fault::NOT_RUNNING), fault(fault::BAD_NAME)]);
    let client = SupervisorClient::new(&url, None).unwrap();
    client.start_process("x").unwrap();
    client.stop_process("x").unwrap();
    assert!(client.stop_process("x").unwrap_err().is_fault(fault::BAD_NAME));
}

#[test]
fn an_answer_without_end_is_cut_off() {
    let length = MAX_DOCUMENT + 1;
    let endless = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length));
    let (url, _requests) = tcp_server(vec![endless.clone(), endless]);
    let error = SupervisorClient::new(&url, None).unwrap().all_process_info().unwrap_err();
    assert!(chain(&error).contains("limit"), "{}", chain(&error));
}

#[test]
fn a_silent_server_is_given_up() {
    let timeout = Duration::from_millis(100);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = SupervisorClient::with_timeout(&url, None, timeout).unwrap();
    assert!(matches!(client.all_process_info(), Err(SupervisorError::Unreachable { .. })));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let url = format!("unix://{}", path.display());
    let client = SupervisorClient::with_timeout(&url, None, timeout).unwrap();
    let missing = chain(&client.all_process_info().unwrap_err());
    assert!(missing.contains("No such file"), "{missing}");
    let listener = UnixListener::bind(&path).unwrap();
    let silent = chain(&client.all_process_info().unwrap_err());
    assert!(silent.contains("timeout"), "{silent}");
    // Nobody accepts, so the backlog fills up, and even the connect would wait.
    rustix::net::listen(&listener, 0).unwrap();
    let waiting: Vec<_> = std::iter::from_fn(|| unix_socket::connect(&path).ok()).take(200).collect();
    assert!(waiting.len() < 200, "the backlog has no end");
    let full = chain(&client.all_process_info().unwrap_err());
    assert!(full.contains("temporarily unavailable"), "{full}");
}

#[test]
fn bad_addresses_are_refused_without_showing_passwords() {
    for bad in ["", "localhost:9001", "https://h:1", "unix://relative", "http://", "ftp://h/"] {
        let error = SupervisorClient::new(bad, None).unwrap_err().to_string();
        assert!(error.contains("expected http://host:port or unix:///path.sock"), "{bad}: {error}");
    }
    let error = SupervisorClient::new("https://me:s3cret@h:1", None).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"));
    let client = SupervisorClient::with_timeout("http://me:s3cret@127.0.0.1:1", None, BACK_OFF).unwrap();
    let error = client.process_info("x").unwrap_err();
    assert!(!format!("{} {error:?}", chain(&error)).contains("s3cret"));
}
