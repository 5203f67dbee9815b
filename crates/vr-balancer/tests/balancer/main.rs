//! The balancers as their users meet them: real sockets on 127.0.0.1 and the real `vr-balancer` program.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apache;
mod caddy;
mod chained;
mod cli;
mod exec;
mod failures;
mod files;
mod fixtures;
mod haproxy;
mod messages;
mod proxy_health;
mod proxy_http2;
mod proxy_limits;
mod proxy_logs;
mod proxy_protocol;
mod proxy_routes;
mod proxy_smuggling;
mod proxy_support;
mod proxy_tls;
mod restart;
mod soap;
mod stingray;
mod suite;
mod support;
mod traffic;
