//! Asks the nodes of a pool, every now and then, whether they are well.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use tokio::time::MissedTickBehavior;

use super::Limits;
use super::body::RequestBody;
use super::connections::{self, Dial, Introduction};
use super::options::{HealthCheck, NodeProtocol, PoolOptions};
use super::pool::Pool;
use super::upstream::Upstream;

/// Nodes of a pool that are asked at the same time.
const AT_ONCE: usize = 32;

/// Checks the pool's nodes as its options say, until the pool is gone.
pub(super) fn watch(pool: &Arc<Pool>, limits: &Limits) {
    let (gone, changed) = (pool.gone(), Arc::clone(&pool.options_changed));
    let (pool, limits) = (Arc::downgrade(pool), limits.clone());
    tokio::spawn(async move {
        loop {
            let interval = {
                // A strong reference only for a moment: the pool shall go when nobody else has it.
                let Some(pool) = pool.upgrade() else {
                    return;
                };
                pool.options.load().health_check.as_ref().map(|check| check.interval)
            };
            match interval {
                Some(interval) => {
                    let rounds = async {
                        let mut ticks = tokio::time::interval(interval);
                        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        loop {
                            ticks.tick().await;
                            let Some(pool) = pool.upgrade() else {
                                return;
                            };
                            round(&pool, &limits).await;
                        }
                    };
                    tokio::select! {
                        () = gone.cancelled() => return,
                        () = changed.notified() => {}
                        () = rounds => return,
                    }
                    if let Some(pool) = pool.upgrade()
                        && pool.options.load().health_check.is_none()
                    {
                        pool.upstreams().iter().for_each(|upstream| upstream.forget_checks());
                    }
                }
                None => tokio::select! {
                    () = gone.cancelled() => return,
                    () = changed.notified() => {}
                },
            }
        }
    });
}

async fn round(pool: &Pool, limits: &Limits) {
    let options = pool.options.load_full();
    let Some(check) = &options.health_check else {
        return;
    };
    let upstreams = pool.upstreams();
    stream::iter(upstreams.iter())
        .for_each_concurrent(AT_ONCE, async |upstream| {
            let found =
                match tokio::time::timeout(check.timeout, ask(upstream, check, &options, limits)).await {
                    Ok(found) => found,
                    Err(_) => Err(format!("no answer within {} s", check.timeout.as_secs_f64())),
                };
            let node = &upstream.node;
            match upstream.checked(found.is_ok(), check) {
                Some(true) => tracing::info!(pool = %pool.name, %node, "a node is up"),
                Some(false) => {
                    let reason = found.err().unwrap_or_default();
                    tracing::warn!(pool = %pool.name, %node, reason, "a node is down");
                }
                None => {}
            }
        })
        .await;
}

/// One check on a connection of its own: any other might be kept open by something that is not well any more.
async fn ask(
    upstream: &Upstream,
    check: &HealthCheck,
    options: &PoolOptions,
    limits: &Limits,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let introduction = options.send_proxy.map(|version| Introduction { version, client: None, server: None });
    let dial = Dial { protocol: options.protocol, introduction };
    // The time-out of the check bounds this.
    let limits = Limits { connect: Duration::MAX, ..limits.clone() };
    let stream = connections::reach(&upstream.node, dial, &limits).await.map_err(|e| text(&e))?;
    // Ends with this check, whatever is said on it.
    let closing = upstream.closing.child_token();
    let _until_checked = closing.clone().drop_guard();
    let mut sender = connections::begin(stream, &upstream.node, dial.protocol, &closing, &limits)
        .await
        .map_err(|e| text(&e))?;
    let host = check.host.clone().unwrap_or_else(|| upstream.node.to_string());
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static("vr-balancer health check"));
    let uri = match options.protocol {
        NodeProtocol::Http1 => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            headers.insert(HOST, HeaderValue::from_str(&host).map_err(|e| text(&e))?);
            check.path.parse::<Uri>()
        }
        NodeProtocol::Http2 => format!("http://{host}{}", check.path).parse::<Uri>(),
    };
    *request.uri_mut() = uri.map_err(|e| text(&e))?;
    let answer = sender.send(request).await.map_err(|error| text(&error.into_error()))?;
    let code = answer.status().as_u16();
    if check.expect.contains(code) { Ok(()) } else { Err(format!("status {code}")) }
}
