//! A traffic manager's SOAP interface that keeps pools, and takes only messages that mean the same as recorded ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::{QName, ResolveResult};
use serde_json::Value;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const POOL: &str = "http://soap.zeus.com/zxtm/1.0/Pool/";
const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
const ENCODING: &str = "http://schemas.xmlsoap.org/soap/encoding/";

/// An element by its meaning: prefixes are replaced by what they stand for, in the values of types, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xml {
    name: String,
    attributes: BTreeMap<String, String>,
    text: String,
    children: Vec<Xml>,
}

impl Xml {
    pub fn parse(document: &str) -> Self {
        let mut xml = NsReader::from_str(document);
        xml.config_mut().expand_empty_elements = true;
        let mut open = vec![Self::named(String::new())];
        loop {
            match xml.read_event().unwrap() {
                Event::Start(tag) => {
                    let resolver = xml.resolver();
                    let full = |(namespace, local): (ResolveResult<'_>, quick_xml::name::LocalName<'_>)| {
                        let namespace = match namespace {
                            ResolveResult::Bound(namespace) => format!("{{{}}}", namespace.0),
                            ResolveResult::Unbound => String::new(),
                            ResolveResult::Unknown(prefix) => {
                                panic!("an unknown prefix {prefix}: {document}")
                            }
                        };
                        format!("{namespace}{}", local.as_ref())
                    };
                    let mut element = Self::named(full(resolver.resolve_element(tag.name())));
                    for attribute in tag.attributes() {
                        let attribute = attribute.unwrap();
                        if attribute.key.as_namespace_binding().is_some() {
                            continue;
                        }
                        let name = full(resolver.resolve_attribute(attribute.key));
                        let value = attribute.value.to_string();
                        let is_type = [format!("{{{INSTANCE}}}type"), format!("{{{ENCODING}}}arrayType")];
                        let value = if is_type.contains(&name) {
                            full(resolver.resolve_element(QName(&value)))
                        } else {
                            value
                        };
                        element.attributes.insert(name, value);
                    }
                    open.push(element);
                }
                Event::End(_) => {
                    let done = open.pop().unwrap();
                    open.last_mut().unwrap().children.push(done);
                }
                Event::Text(text) => open.last_mut().unwrap().text += text.xml10_content().trim(),
                Event::GeneralRef(reference) => {
                    let character = match &*reference {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        other => panic!("a reference {other}"),
                    };
                    open.last_mut().unwrap().text.push(character);
                }
                Event::Decl(_) => {}
                Event::Eof => break,
                other => panic!("{other:?} in {document}"),
            }
        }
        open.pop().unwrap().children.pop().unwrap()
    }

    fn named(name: String) -> Self {
        Self { name, attributes: BTreeMap::new(), text: String::new(), children: Vec::new() }
    }

    fn operation(&self) -> &Self {
        &self.children.iter().find(|child| child.name.ends_with("}Body")).unwrap().children[0]
    }

    fn operation_mut(&mut self) -> &mut Self {
        &mut self.children.iter_mut().find(|child| child.name.ends_with("}Body")).unwrap().children[0]
    }

    /// Makes it an array of these, in the way of its first member.
    fn refill(&mut self, count: usize, fill: impl Fn(usize, &mut Self)) {
        let pattern = self.children[0].clone();
        let old = self.children.len();
        self.children = vec![pattern; count];
        self.children.iter_mut().enumerate().for_each(|(at, child)| fill(at, child));
        let length = self.attributes.get_mut(&format!("{{{ENCODING}}}arrayType")).unwrap();
        *length = length.replace(&format!("[{old}]"), &format!("[{count}]"));
    }

    fn texts(&self) -> Vec<String> {
        self.children.iter().map(|child| child.text.clone()).collect()
    }
}

/// A recorded request of the published client.
pub struct Recorded {
    pub step: String,
    pub headers: BTreeMap<String, String>,
    pub message: Xml,
}

pub fn recorded() -> Vec<Recorded> {
    let file: Value = serde_json::from_str(include_str!("../data/stingray.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let requests = file["requests"].as_array().unwrap().iter();
    requests
        .map(|request| {
            let headers = request["headers"].as_object().unwrap().iter();
            Recorded {
                step: text(&request["step"]),
                headers: headers.map(|(name, value)| (name.to_lowercase(), text(value))).collect(),
                message: Xml::parse(request["body"].as_str().unwrap()),
            }
        })
        .collect()
}

/// The recorded request of this operation, or else of one with the same shape, about this pool and these nodes.
fn expected(operation: &str, pool: Option<&str>, nodes: Option<&[String]>) -> Xml {
    let like = match operation {
        "addPool" | "enableNodes" => "disableNodes",
        "getDisabledNodes" | "getPoolNames" => "getNodes",
        recorded => recorded,
    };
    let name = |operation: &str| format!("{{{POOL}}}{operation}");
    let mut message = recorded()
        .into_iter()
        .map(|recorded| recorded.message)
        .find(|message| message.operation().name == name(like))
        .unwrap_or_else(|| panic!("nobody ever called {operation}"));
    let call = message.operation_mut();
    call.name = name(operation);
    match pool {
        None => call.children.clear(),
        Some(pool) => call.children[0].refill(1, |_, item| item.text = pool.to_owned()),
    }
    if let Some(nodes) = nodes {
        call.children[1].refill(1, |_, list| {
            list.refill(nodes.len(), |at, item| item.text.clone_from(&nodes[at]));
        });
    }
    message
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub operation: String,
    pub nodes: Vec<String>,
    pub headers: HeaderMap,
    pub message: Xml,
    pub at: Instant,
}

/// What it does with a request instead of its work.
#[derive(Debug, Clone)]
pub enum Trouble {
    Fault(&'static str),
    Status(u16),
    Body(Vec<u8>),
    /// It never answers.
    Silence,
    /// It breaks off in the middle of its answer.
    Cut,
    /// Another one makes the pool, with this node, before the request is looked at.
    Faster(&'static str),
    /// It says that it was done.
    Lie,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    pub nodes: Vec<String>,
    pub disabled: BTreeSet<String>,
}

#[derive(Default)]
pub struct State {
    pub pools: BTreeMap<String, Pool>,
    pub seen: Vec<Seen>,
    /// For the next request of an operation.
    pub trouble: BTreeMap<&'static str, Trouble>,
    /// What was wrong with requests.
    complaints: Vec<String>,
}

/// The server. It ends when this is dropped, and the test fails if any message was not as it should be.
pub struct SoapServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl SoapServer {
    pub async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, state: Arc::default(), stop: CancellationToken::new() };
        let (state, stop) = (Arc::clone(&server.state), server.stop.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = stop.cancelled() => return,
                };
                let (state, stop, tls) = (Arc::clone(&state), stop.clone(), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    let serve = async {
                        match tls {
                            None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                                }
                            }
                        }
                    };
                    tokio::select! { () = serve => {}, () = stop.cancelled() => {} }
                });
            }
        });
        server
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn give(&self, pool: &str, nodes: &[&str]) {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        self.state().pools.insert(pool.to_owned(), Pool { nodes, ..Pool::default() });
    }

    pub fn trouble(&self, operation: &'static str, trouble: Trouble) {
        self.state().trouble.insert(operation, trouble);
    }

    /// The operations that came since the last time.
    pub fn operations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().seen).into_iter().map(|seen| seen.operation).collect()
    }

    /// Its settings in one line, with these before them.
    pub fn block(&self, more: &str) -> String {
        format!(
            "{{BACKEND: stingray, {more}URL: 'http://{}/soap', USER: api_user, PASSWORD: 'pa:ss', POOL_PREFIX: vr-}}",
            self.address
        )
    }
}

impl Drop for SoapServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if !std::thread::panicking() {
            let complaints = std::mem::take(&mut self.state.lock().unwrap().complaints);
            assert!(complaints.is_empty(), "{}", complaints.join("\n"));
        }
    }
}

fn envelope(content: &str) -> Vec<u8> {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<SOAP-ENV:Envelope \
         xmlns:SOAP-ENV=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:SOAP-ENC=\"{ENCODING}\" \
         xmlns:xsi=\"{INSTANCE}\" xmlns:xsd=\"http://www.w3.org/1999/XMLSchema\" \
         SOAP-ENV:encodingStyle=\"{ENCODING}\"><SOAP-ENV:Body>{content}</SOAP-ENV:Body></SOAP-ENV:Envelope>"
    )
    .into_bytes()
}

fn fault(words: &str) -> (u16, Vec<u8>) {
    let fault = format!(
        "<SOAP-ENV:Fault><faultcode>SOAP-ENV:Server</faultcode><faultstring>{words}</faultstring></SOAP-ENV:Fault>"
    );
    (500, envelope(&fault))
}

fn done(operation: &str, content: &str) -> (u16, Vec<u8>) {
    let name = format!("zeusns:{operation}Response");
    (200, envelope(&format!("<{name} xmlns:zeusns=\"{POOL}\">{content}</{name}>")))
}

fn items(texts: &[String]) -> String {
    texts.iter().map(|text| format!("<Item xsi:type=\"xsd:string\">{text}</Item>")).collect()
}

fn array(name: &str, members: &str) -> String {
    format!("<{name} SOAP-ENC:arrayType=\"xsd:list[1]\" xsi:type=\"SOAP-ENC:Array\">{members}</{name}>")
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let respond = |(status, body): (u16, Vec<u8>)| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok(response)
    };
    let login = format!("Basic {}", STANDARD.encode("api_user:pa:ss"));
    if head.headers.get("authorization").is_none_or(|given| *given != *login) {
        return respond((401, b"<html>no</html>".to_vec()));
    }
    let message = std::panic::catch_unwind(|| Xml::parse(std::str::from_utf8(&body).unwrap()));
    let Ok(message) = message else {
        state.lock().unwrap().complaints.push(format!("not XML: {body:?}"));
        return respond(fault("not XML"));
    };
    let call = message.operation().clone();
    let operation = call.name.trim_start_matches(&format!("{{{POOL}}}")).to_owned();
    let pool = call.children.first().and_then(|names| names.texts().first().cloned());
    let nodes = call.children.get(1).map(|lists| lists.children[0].texts());
    let wanted = std::panic::catch_unwind(|| expected(&operation, pool.as_deref(), nodes.as_deref()));
    let action = format!("\"{POOL}{operation}\"");
    let is_right = head.method == "POST"
        && head.uri.path() == "/soap"
        && head.headers.get("soapaction").is_some_and(|given| *given == *action)
        && head.headers.get("content-type").is_some_and(|given| *given == "text/xml; charset=utf-8")
        && wanted.as_ref().is_ok_and(|wanted| *wanted == message);
    let trouble = {
        let mut state = state.lock().unwrap();
        if !is_right {
            state.complaints.push(format!("{operation}: expected {wanted:#?}, found {head:?} {message:#?}"));
            return respond(fault("not as it was recorded"));
        }
        let nodes = nodes.clone().unwrap_or_default();
        let headers = head.headers.clone();
        let seen = Seen { operation: operation.clone(), nodes, headers, message, at: Instant::now() };
        state.seen.push(seen);
        state.trouble.remove(operation.as_str())
    };
    match trouble {
        None => {}
        Some(Trouble::Fault(words)) => return respond(fault(words)),
        Some(Trouble::Status(status)) => return respond((status, b"<html>no</html>".to_vec())),
        Some(Trouble::Body(body)) => return respond((200, body)),
        Some(Trouble::Silence) => return std::future::pending().await,
        Some(Trouble::Cut) => return Err(std::io::Error::other("cut")),
        Some(Trouble::Lie) => return respond(done(&operation, "")),
        Some(Trouble::Faster(node)) => {
            let nodes = vec![node.to_owned()];
            let mut state = state.lock().unwrap();
            state.pools.insert(pool.clone().unwrap(), Pool { nodes, ..Pool::default() });
        }
    }
    let mut state = state.lock().unwrap();
    respond(work(&mut state, &operation, pool.unwrap_or_default(), nodes.unwrap_or_default()))
}

fn work(state: &mut State, operation: &str, name: String, nodes: Vec<String>) -> (u16, Vec<u8>) {
    if operation == "getPoolNames" {
        let names: Vec<String> = state.pools.keys().cloned().collect();
        return done(operation, &array("names", &items(&names)));
    }
    if operation == "addPool" {
        if state.pools.contains_key(&name) {
            return fault(&format!("Pool already exists: {name}"));
        }
        state.pools.insert(name, Pool { nodes, ..Pool::default() });
        return done(operation, "");
    }
    let Some(pool) = state.pools.get_mut(&name) else { return fault(&format!("Unknown pool: {name}")) };
    if ["disableNodes", "enableNodes", "removeNodes"].contains(&operation)
        && let Some(unknown) = nodes.iter().find(|node| !pool.nodes.contains(node))
    {
        return fault(&format!("Unknown node: {unknown}"));
    }
    match operation {
        "getNodes" => return done(operation, &array("nodes", &array("Item", &items(&pool.nodes)))),
        "getDisabledNodes" => {
            let disabled: Vec<String> = pool.disabled.iter().cloned().collect();
            return done(operation, &array("nodes", &array("Item", &items(&disabled))));
        }
        "addNodes" => {
            for node in nodes {
                if !pool.nodes.contains(&node) {
                    pool.nodes.push(node);
                }
            }
        }
        "removeNodes" => {
            pool.nodes.retain(|node| !nodes.contains(node));
            pool.disabled.retain(|node| !nodes.contains(node));
        }
        "disableNodes" => pool.disabled.extend(nodes),
        "enableNodes" => pool.disabled.retain(|node| !nodes.contains(node)),
        "deletePool" => drop(state.pools.remove(&name)),
        other => return fault(&format!("Unknown method: {other}")),
    }
    done(operation, "")
}
