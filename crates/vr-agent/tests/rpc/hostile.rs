//! Callers who mean no good, or do not know better.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use vr_common::xmlrpc::{MAX_DOCUMENT, read_response};

use crate::harness::Vrun;
use crate::parts::{PASSWORD, RpcHost, USER};

const NAME: &str = "demo-v1-prod-abcd1234-web-5001";
const GET_PID: &str = "<methodCall><methodName>supervisor.getPID</methodName></methodCall>";

/// `me:thepassword`.
const LOGIN: &str = "Authorization: Basic bWU6dGhlcGFzc3dvcmQ=\r\n";

/// Sends a request as it is.
fn send(host: &RpcHost, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&host.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // It may be refused before it is read.
    let _ = stream.write_all(request);
    stream
}

/// The status and the rest of an answer.
fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // What was not read of the request.
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("{e}"),
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

fn post(host: &RpcHost, headers: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    answer(send(host, (head + body).as_bytes()))
}

fn call_of(value: &str) -> String {
    format!(
        "<methodCall><methodName>supervisor.getProcessInfo</methodName>\
         <params><param><value>{value}</value></param></params></methodCall>"
    )
}

fn is_fine(host: &RpcHost) {
    let (status, text) = post(host, LOGIN, GET_PID);
    assert!(status == 200 && text.contains(&host.host.agent_pid().to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused() {
    assert_eq!((USER, PASSWORD), ("me", "thepassword"));
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    tokio::task::block_in_place(|| {
        is_fine(&host);
        // Nobody gets further than the password.
        for headers in ["", "Authorization: Basic\r\n", "Authorization: Basic bWU6dGhlcGFzc3dvcmQ\r\n"] {
            let (status, text) = post(&host, headers, "x");
            assert_eq!(status, 401, "{text}");
            assert!(text.to_lowercase().contains("www-authenticate: basic realm=\"default\""), "{text}");
        }
        for path in ["/logtail/x", "/mainlogtail", "/", "/nonsense"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            assert_eq!(answer(send(&host, request.as_bytes())).0, 401);
        }

        let get = |path: &str, more: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{LOGIN}{more}\r\n");
            answer(send(&host, request.as_bytes()))
        };
        for (path, expected) in [
            ("/RPC2", 405),
            ("/", 404),
            ("/nonsense", 404),
            ("/mainlogtail", 404),
            ("/logtail/nope", 404),
            ("/logtail/nope/stdout", 404),
            ("/logtail/..%2f..%2f..%2fetc%2fpasswd", 404),
            ("/logtail/%ff", 400),
            (&format!("/logtail/{NAME}/stderr"), 404),
            (&format!("/logtail/{NAME}/secret"), 404),
            (&format!("/logtail/{NAME}:*"), 404),
            (&format!("/logtail/{NAME}/stdout/more"), 404),
        ] {
            assert_eq!(get(path, "").0, expected, "{path}");
        }

        // Web pages may not call, whatever they send.
        assert_eq!(post(&host, &format!("{LOGIN}Origin: http://evil.example\r\n"), GET_PID).0, 403);
        // Supervisor takes any type.
        for kind in ["text/plain", "application/json", "image/png; charset=x", "nonsense"] {
            assert_eq!(post(&host, &format!("{LOGIN}Content-Type: {kind}\r\n"), GET_PID).0, 200);
        }

        for (body, expected) in [
            ("", "it ends in the middle"),
            ("hello", "text where an element"),
            ("{}", "text where an element"),
            ("<methodCall>", "malformed"),
            ("<methodCall><methodName></methodName></methodCall>", "names no method"),
            ("<methodCall><params/></methodCall>", "expected <methodName>"),
            ("<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a 'b'>]><methodCall/>", "document type"),
            (&call_of("&a;"), "an unknown reference"),
            (&call_of("<int>99999999999</int>"), "at most 32 bits"),
            (&call_of(&"<array><data><value>".repeat(100_000)), "nested more than 32 deep"),
            (
                &call_of(&format!("<array><data>{}</data></array>", "<value/>".repeat(300_000))),
                "more than 250000",
            ),
        ] {
            let (status, text) = post(&host, LOGIN, body);
            assert!(status == 400 && text.contains(expected), "{expected}: {text}");
        }
        let (status, text) = post(&host, LOGIN, &call_of("<string>\u{7}</string>"));
        assert!(status == 200 || status == 400, "{text}");

        // Without a length, with a wrong one, and with one that is too much.
        let head = format!("POST /RPC2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{LOGIN}");
        let raw = |rest: &str| answer(send(&host, format!("{head}{rest}").as_bytes())).0;
        assert_eq!(raw("\r\n"), 411);
        assert_eq!(raw("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 411);
        assert_eq!(raw("Content-Length: -1\r\n\r\n"), 400);
        assert_eq!(raw("Content-Length: 99999999999999999999\r\n\r\n"), 400);
        assert_eq!(raw(&format!("Content-Length: {}\r\n\r\n", MAX_DOCUMENT + 1)), 413);
        assert_eq!(raw(&format!("Content-Length: 10\r\n{}: x\r\n\r\n", "x".repeat(200_000))), 431);
        is_fine(&host);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_and_half_requests_cost_only_their_own_connections() {
    let host = RpcHost::start(Vrun::StandIn).await;
    tokio::task::block_in_place(|| {
        is_fine(&host);
        let before = host.resident();
        // As long as may be, in one text.
        let text = "x".repeat(MAX_DOCUMENT - call_of("").len());
        let (status, said) = post(&host, LOGIN, &call_of(&text));
        let body = said.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(status, 200);
        let fault = read_response(body.as_bytes()).unwrap().unwrap_err();
        assert_eq!(fault.code, 10);
        // A hundred that never come to their end, with and without a password.
        let halves: Vec<TcpStream> = (0..100)
            .map(|number| {
                let login = if number % 2 == 0 { LOGIN } else { "" };
                let half = match number % 4 {
                    0 => format!("POST /RPC2 HTTP/1.1\r\n{login}Content-Length: 100\r\n\r\n<methodCall>"),
                    1 => "POST /RPC2 HT".to_owned(),
                    2 => format!("POST /RPC2 HTTP/1.1\r\n{login}"),
                    _ => String::new(),
                };
                send(&host, half.as_bytes())
            })
            .collect();
        let started = Instant::now();
        for _ in 0..20 {
            is_fine(&host);
        }
        assert!(started.elapsed() < Duration::from_secs(10));
        drop(halves);
        is_fine(&host);
        let after = host.resident();
        // One long request at a time is the most that was there at once.
        assert!(after < before + 96 * 1024, "{before} KiB grew to {after} KiB");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_have_a_bound_one_by_one_and_together() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    fs::write(host.proc_dir(NAME).join("log"), vec![b'x'; 9_000_000]).unwrap();
    let read_log = format!(
        "<methodCall><methodName>supervisor.readProcessLog</methodName><params><param><value>{NAME}</value></param>\
         <param><value><int>0</int></value></param><param><value><int>0</int></value></param></params></methodCall>"
    );
    let of_several = |method: &str, params: &str, count: usize| {
        let call = format!(
            "<value><struct><member><name>methodName</name><value>{method}</value></member>\
             <member><name>params</name><value><array><data>{params}</data></array></value></member></struct></value>"
        );
        format!(
            "<methodCall><methodName>system.multicall</methodName><params><param><value><array><data>{}</data></array>\
             </value></param></params></methodCall>",
            call.repeat(count)
        )
    };
    tokio::task::block_in_place(|| {
        is_fine(&host);
        let (status, text) = post(&host, LOGIN, &read_log);
        assert!(status == 200 && text.len() > 9_000_000);

        // Many at once in one call: as much as one answer may have, and faults for the rest.
        let params = format!("<value>{NAME}</value><value><int>0</int></value><value><int>0</int></value>");
        for (method, params, count) in
            [("supervisor.readProcessLog", params.as_str(), 50), ("supervisor.getAllProcessInfo", "", 25_000)]
        {
            let (status, text) = post(&host, LOGIN, &of_several(method, params, count));
            assert_eq!(status, 200);
            assert!(text.contains("FAILED: the answer would be longer than"), "{method}");
            assert!(text.len() < 2 * MAX_DOCUMENT, "{method}: {}", text.len());
        }

        // Calls that are not told of any more are not made either, and hold up nobody.
        let mut calls = of_several("supervisor.readProcessLog", &params, 2);
        let stop = format!(
            "<value><struct><member><name>methodName</name><value>supervisor.stopProcess</value></member><member>\
             <name>params</name><value><array><data><value>{NAME}</value></data></array></value></member></struct></value>"
        );
        calls.insert_str(calls.rfind("</data></array></value></param>").unwrap(), &stop);
        let (status, text) = post(&host, LOGIN, &calls);
        assert!(status == 200 && text.len() > 9_000_000, "the first one has room");
        assert_eq!(text.matches("FAILED: the answer would be longer than").count(), 2);
        assert_eq!(host.client().process_info(NAME).unwrap().statename, "RUNNING");

        // Readers who ask for a lot and take nothing of it.
        let head =
            format!("POST /RPC2 HTTP/1.1\r\nHost: x\r\n{LOGIN}Content-Length: {}\r\n\r\n", read_log.len());
        let readers: Vec<TcpStream> =
            (0..60).map(|_| send(&host, format!("{head}{read_log}").as_bytes())).collect();
        let started = Instant::now();
        for _ in 0..20 {
            is_fine(&host);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        let resident = host.resident();
        assert!(resident < 300 * 1024, "{resident} KiB");
        drop(readers);
        // There is room again.
        crate::parts::wait("room", || (post(&host, LOGIN, &read_log).1.len() > 9_000_000).then_some(()));
    });
}
