//! One request: which node gets it, what happens when that node does not answer, and what the client sees.
//!
//! No answer is ever asked for twice unless that is harmless: a request whose connection was never made, or that
//! was never sent, goes to another node whatever its method. Any other is repeated only if it is idempotent and has
//! no body. All others get a connection of their own, because a node may close an idle connection in the very moment
//! in which it is used again, and nobody could tell then whether the request was carried out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::body::{AnswerBody, RequestBody, UploadProgress};
use super::pool::Pool;
use super::upstream::{InFlight, Upstream};
use super::warnings::Warning;
use super::{Limits, headers, page, tunnel};

/// How often a request may break on a connection that was made for it.
const MAX_BROKEN: u32 = 2;

/// What all requests share.
pub(super) struct DataPlane {
    pub(super) limits: Limits,
    /// Whose stories about the clients before them are believed; no IPv4 in IPv6.
    pub(super) trusted_proxies: Vec<IpAddr>,
    /// Clients' connections and tunnels.
    pub(super) tasks: TaskTracker,
}

/// How one attempt to get an answer ended.
enum Attempt {
    Answered(Response<Incoming>),
    /// Nothing was sent; here is the body again.
    NotSent(Option<Incoming>),
    /// The connection ended, and the node may have seen the request.
    Broken(hyper::Error),
    TimedOut,
}

/// Answers a client's request with what a node of the pool says, or with a page of our own.
pub(super) async fn forward(
    plane: &DataPlane,
    pool: &Pool,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    if let Err(reason) = normalise(&mut request) {
        return page::page(StatusCode::BAD_REQUEST, "Bad request", reason);
    }
    let limits = &plane.limits;
    let upgrade =
        headers::upgrade_protocol(request.headers()).filter(|_| request.version() == Version::HTTP_11);
    let mut client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, incoming) = request.into_parts();
    let believed = plane.trusted_proxies.contains(&client.to_canonical());
    headers::prepare_request(&mut head.headers, client, believed, upgrade.as_ref());
    let mut body = (!incoming.is_end_stream()).then_some(incoming);
    if body.is_some() && !head.headers.contains_key(CONTENT_LENGTH) {
        // Otherwise the body of a GET or HEAD, which usually have none, would be left out.
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }

    let replayable = body.is_none() && head.method.is_idempotent();
    let mut may_reuse = replayable;
    let started = Instant::now();
    let mut tried: Vec<Arc<Upstream>> = Vec::new();
    let mut broken = 0;
    loop {
        let Some((upstream, place)) = pool.pick(&tried) else {
            let reason = format!("{} tried", tried.len());
            pool.warnings.warn(Warning::NoNode, None, Some(&reason));
            return if broken > 0 { page::bad_gateway() } else { page::maintenance() };
        };
        let idle = if may_reuse { upstream.take_idle() } else { None };
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => match upstream.connect(limits).await {
                Ok(sender) => sender,
                Err(error) => {
                    pool.warnings.warn(Warning::CannotConnect, Some(&upstream.node), Some(&error));
                    if started.elapsed() >= limits.connect_total {
                        return page::maintenance();
                    }
                    tried.push(upstream);
                    continue;
                }
            },
        };

        upstream.count_request();
        let place = Arc::new(place);
        match attempt(limits, &upstream, &place, &mut sender, &head, body.take()).await {
            Attempt::Answered(answer) => {
                return pass_on(
                    plane,
                    &upstream,
                    sender,
                    place,
                    answer,
                    upgrade.as_ref(),
                    client_side.take(),
                );
            }
            Attempt::NotSent(unread) => {
                body = unread;
                may_reuse = false;
                if !reused {
                    broken += 1;
                    tried.push(upstream);
                }
            }
            Attempt::Broken(error) if error.is_user() => {
                // It was the body that could not be read any further.
                pool.warnings.warn(Warning::BodyMissing, None, Some(&format!("{client}: {error}")));
                return page::page(
                    StatusCode::REQUEST_TIMEOUT,
                    "Request time-out",
                    "The body of the request did not arrive.",
                );
            }
            Attempt::Broken(error) => {
                if reused {
                    // Most likely closed by the node because it was idle: no failure of the node.
                    may_reuse = false;
                } else {
                    pool.warnings.warn(Warning::NodeBrokeOff, Some(&upstream.node), Some(&error));
                    upstream.count_failure();
                    broken += 1;
                    tried.push(upstream);
                }
                if !replayable || broken >= MAX_BROKEN {
                    return page::bad_gateway();
                }
            }
            Attempt::TimedOut => {
                pool.warnings.warn(Warning::NodeTooLate, Some(&upstream.node), None);
                upstream.count_failure();
                return page::gateway_timeout();
            }
        }
    }
}

/// Brings the request into the form that nodes expect, or says what is wrong with it.
fn normalise(request: &mut Request<Incoming>) -> Result<(), &'static str> {
    if request.method() == Method::CONNECT {
        return Err("This is not a proxy that connects to other servers.");
    }
    if let Some(authority) = request.uri().authority() {
        // "GET http://host/path": what the request line says outranks the header.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host).map_err(|_| "The host in the request line is malformed.")?;
        request.headers_mut().insert(HOST, host);
    }
    match request.headers().get_all(HOST).iter().count() {
        1 => {}
        0 if request.version() < Version::HTTP_11 => {}
        0 => return Err("The Host header is missing."),
        _ => return Err("There is more than one Host header."),
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    Ok(())
}

async fn attempt(
    limits: &Limits,
    upstream: &Upstream,
    place: &Arc<InFlight>,
    sender: &mut SendRequest<RequestBody>,
    head: &request::Parts,
    incoming: Option<Incoming>,
) -> Attempt {
    let progress = UploadProgress::new();
    let body = RequestBody::new(incoming, upstream, Arc::clone(place), limits.body_idle, progress.clone());
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    if !head.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&upstream.node.to_string())
    {
        // Only HTTP/1.0 may go without; the node is spoken to in HTTP/1.1.
        request.headers_mut().insert(HOST, host);
    }

    let mut answer = std::pin::pin!(sender.try_send_request(request));
    let mut patience = limits.answer;
    loop {
        // A slow upload is not a slow answer: the clock starts anew whenever the body moved.
        match tokio::time::timeout(patience, answer.as_mut()).await {
            Ok(Ok(answer)) => return Attempt::Answered(answer),
            Ok(Err(mut error)) => {
                return match error.take_message() {
                    Some(request) => Attempt::NotSent(request.into_body().into_incoming()),
                    None => Attempt::Broken(error.into_error()),
                };
            }
            Err(_) => {
                patience = limits.answer.saturating_sub(progress.since_last_move());
                if patience == Duration::ZERO {
                    return Attempt::TimedOut;
                }
            }
        }
    }
}

fn pass_on(
    plane: &DataPlane,
    upstream: &Arc<Upstream>,
    sender: SendRequest<RequestBody>,
    place: Arc<InFlight>,
    mut answer: Response<Incoming>,
    upgrade: Option<&HeaderValue>,
    client_side: Option<hyper::upgrade::OnUpgrade>,
) -> Response<AnswerBody> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((client_side, asked)) = client_side.zip(upgrade) else {
            upstream.warnings.warn(Warning::ProtocolChanged, Some(&upstream.node), None);
            upstream.count_failure();
            return page::bad_gateway();
        };
        let protocol = answer.headers().get(http::header::UPGRADE).unwrap_or(asked).clone();
        let node_side = hyper::upgrade::on(&mut answer);
        let task = tunnel::run(plane.limits.tunnel_idle, client_side, node_side, Arc::clone(upstream), place);
        plane.tasks.spawn(task);
        let (mut head, _) = answer.into_parts();
        headers::prepare_answer(&mut head.headers, Some(&protocol));
        head.version = Version::HTTP_11;
        return Response::from_parts(head, AnswerBody::empty());
    }
    let (mut head, incoming) = answer.into_parts();
    headers::prepare_answer(&mut head.headers, None);
    head.version = Version::HTTP_11;
    let body = AnswerBody::from_node(incoming, Arc::clone(upstream), sender, place, plane.limits.body_idle);
    Response::from_parts(head, body)
}
