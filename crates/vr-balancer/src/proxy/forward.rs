//! One request: which node gets it, what happens when that node does not answer, and what the client sees.
//!
//! No answer is ever asked for twice unless that is harmless: a request whose connection was never made, or that
//! was never sent, goes to another node whatever its method. Any other is repeated only if it is idempotent and has
//! no body. All others get a connection of their own, because a node may close an idle connection in the very moment
//! in which it is used again, and nobody could tell then whether the request was carried out.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body;
use hyper::body::Incoming;
use ipnet::IpNet;
use tokio_util::task::TaskTracker;
use vr_common::exit::chain;

use super::access_log::AccessLog;
use super::admission::Admission;
use super::body::{AnswerBody, BodyError, NodeConnection, RequestBody, UploadProgress};
use super::connection::Visit;
use super::connections::{Dial, Introduction, Sender};
use super::exchange::Exchange;
use super::options::NodeProtocol;
use super::pool::Pool;
use super::routes::Router;
use super::upstream::{InFlight, Upstream};
use super::warnings::Warning;
use super::{Limits, headers, page, tunnel};

/// How often a request may break on a connection that was made for it.
const MAX_BROKEN: u32 = 2;
/// How many nodes a request is offered to.
const MAX_TRIED: usize = 20;

/// What all requests share.
pub(super) struct DataPlane {
    pub(super) limits: Limits,
    /// Whose stories about the clients before them are believed; no IPv4 in IPv6.
    pub(super) trusted_proxies: Vec<IpNet>,
    /// Clients' connections and tunnels.
    pub(super) tasks: TaskTracker,
    pub(super) router: Router,
    pub(super) admission: Arc<Admission>,
    pub(super) access_log: Option<Arc<AccessLog>>,
}

/// How one attempt to get an answer ended.
enum Attempt {
    Answered(Response<Incoming>),
    /// Nothing was sent; here is the body again.
    NotSent(Option<Incoming>),
    /// The connection ended, and the node may have seen the request.
    Broken(hyper::Error),
    /// The client's body could not be read any further.
    BodyMissing(hyper::Error),
    TimedOut,
}

/// Answers a client's request with what a node of the pool says, or with a page of our own.
pub(super) async fn forward(
    visit: &Visit,
    pool: &Arc<Pool>,
    mut request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Response<AnswerBody> {
    let (plane, client) = (&visit.plane, visit.client.ip());
    let limits = &plane.limits;
    let options = pool.options.load_full();
    let protocol = options.protocol;
    let upgrade = headers::upgrade_protocol(request.headers())
        .filter(|_| request.version() == Version::HTTP_11 && protocol == NodeProtocol::Http1);
    let mut client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, incoming) = request.into_parts();
    let scheme = if visit.is_tls() { "https" } else { "http" };
    let believed = plane.is_trusted(client);
    headers::prepare_request(&mut head.headers, client, scheme, believed, upgrade.as_ref());
    let mut body = (!incoming.is_end_stream()).then_some(incoming);
    match protocol {
        NodeProtocol::Http1 => {
            if body.is_some() && !head.headers.contains_key(CONTENT_LENGTH) {
                // Otherwise the body of a GET or HEAD, which usually have none, would be left out.
                head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        NodeProtocol::Http2 => {
            if let Err(reason) = for_http2(&mut head, scheme) {
                return page::page(StatusCode::BAD_REQUEST, "Bad request", reason);
            }
        }
    }
    // A connection that tells of one client is not for another one's requests.
    let introduction = options.send_proxy.map(|version| Introduction {
        version,
        client: Some(visit.client),
        server: Some(visit.server),
    });
    let dial = Dial { protocol, introduction };
    let is_shared = protocol == NodeProtocol::Http2;

    let replayable = body.is_none() && head.method.is_idempotent();
    let mut may_reuse = (replayable || is_shared) && introduction.is_none();
    let mut tried: Vec<Arc<Upstream>> = Vec::new();
    let mut broken = 0;
    loop {
        let picked = if tried.len() < MAX_TRIED { pool.pick(options.balance, &tried) } else { None };
        let Some((upstream, place)) = picked else {
            let reason = format!("{} tried", tried.len());
            pool.warnings.warn(Warning::NoNode, None, Some(&reason));
            return if broken > 0 { page::bad_gateway() } else { pool.maintenance.load().response() };
        };
        let idle = if may_reuse { upstream.take_connection(protocol) } else { None };
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => match upstream.connect(dial, limits).await {
                Ok(sender) => sender,
                Err(error) => {
                    pool.warnings.warn(Warning::CannotConnect, Some(&upstream.node), Some(&error));
                    if exchange.started().elapsed() >= limits.connect_total {
                        return pool.maintenance.load().response();
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
                exchange.answered_by(&upstream);
                // A connection that tells of one client ends with its request.
                let connection = NodeConnection { sender, is_reusable: introduction.is_none(), place };
                return pass_on(plane, &upstream, connection, answer, upgrade.as_ref(), client_side.take());
            }
            Attempt::NotSent(unread) => {
                body = unread;
                may_reuse = false;
                if !reused {
                    broken += 1;
                    tried.push(upstream);
                }
            }
            Attempt::BodyMissing(error) => {
                pool.warnings.warn(Warning::BodyMissing, None, Some(&format!("{client}: {}", chain(&error))));
                return page::body_missing(is_late(&error));
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

/// Whether a body has not come in time; otherwise it was malformed, or its client is gone.
fn is_late(error: &hyper::Error) -> bool {
    let reason = std::error::Error::source(error).and_then(|reason| reason.downcast_ref::<BodyError>());
    matches!(reason, Some(BodyError::Idle(_) | BodyError::Slow(_)))
}

/// Makes the head of a request ready for a node that speaks HTTP/2.
fn for_http2(head: &mut request::Parts, scheme: &str) -> Result<(), &'static str> {
    let malformed = "The Host header is malformed.";
    let host = head.headers.get(HOST).map_or(Ok("localhost"), |host| host.to_str()).map_err(|_| malformed)?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
    head.uri = uri.map_err(|_| malformed)?;
    headers::prepare_for_http2(&mut head.headers);
    Ok(())
}

async fn attempt(
    limits: &Limits,
    upstream: &Arc<Upstream>,
    place: &Arc<InFlight>,
    sender: &mut Sender,
    head: &request::Parts,
    incoming: Option<Incoming>,
) -> Attempt {
    let progress = incoming.as_ref().map(|_| UploadProgress::new());
    let body = incoming.zip(progress.clone()).map_or_else(RequestBody::empty, |(incoming, progress)| {
        let place = Arc::clone(place);
        RequestBody::new(incoming, upstream, place, limits.body_idle, limits.min_body_rate, progress)
    });
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    if head.uri.authority().is_none()
        && !head.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&upstream.node.to_string())
    {
        // Only HTTP/1.0 may go without; the node is spoken to in HTTP/1.1.
        request.headers_mut().insert(HOST, host);
    }

    let mut answer = std::pin::pin!(sender.send(request));
    let mut patience = limits.answer;
    loop {
        // A slow upload is not a slow answer: the clock starts anew whenever the body moved.
        match tokio::time::timeout(patience, answer.as_mut()).await {
            Ok(Ok(answer)) => return Attempt::Answered(answer),
            Ok(Err(mut error)) => {
                return match error.take_message() {
                    Some(request) => Attempt::NotSent(request.into_body().into_incoming()),
                    None if progress.is_some_and(|progress| progress.has_failed()) => {
                        Attempt::BodyMissing(error.into_error())
                    }
                    None => Attempt::Broken(error.into_error()),
                };
            }
            Err(_) => {
                let waited = progress.as_ref().map_or(limits.answer, UploadProgress::since_last_move);
                patience = limits.answer.saturating_sub(waited);
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
    connection: NodeConnection,
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
        let task =
            tunnel::run(plane.limits.tunnel_idle, client_side, node_side, Arc::clone(upstream), connection);
        plane.tasks.spawn(task);
        let (mut head, _) = answer.into_parts();
        headers::prepare_answer(&mut head.headers, Some(&protocol));
        head.version = Version::HTTP_11;
        return Response::from_parts(head, AnswerBody::empty());
    }
    let (mut head, incoming) = answer.into_parts();
    headers::prepare_answer(&mut head.headers, None);
    head.version = Version::HTTP_11;
    let body = AnswerBody::from_node(incoming, Arc::clone(upstream), connection, plane.limits.body_idle);
    Response::from_parts(head, body)
}
