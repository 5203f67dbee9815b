//! Answers without an end: they stop when the agent does, and there are only so many.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use tokio::sync::watch;

/// The same service, whose answers of unknown length end, as if there were nothing more to say, once `ends` is true.
pub fn ending_with(router: Router, ends: watch::Receiver<bool>) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let mut ends = ends.clone();
        async move {
            let response: Response = next.run(request).await;
            if response.body().size_hint().exact().is_some() {
                return response;
            }
            let end = Box::pin(async move {
                // An error means that the agent is gone altogether.
                let _ = ends.wait_for(|ends| *ends).await;
            });
            response.map(|body| Body::new(UnsyncBoxBody::new(Ending { body, end })))
        }
    }))
}

/// A body that ends early when something happens.
struct Ending {
    body: Body,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut self.body).poll_frame(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn only_what_has_no_end_is_cut_short() {
        let endless = || {
            let first = futures_util::stream::iter([Ok::<_, Infallible>("first")]);
            Body::from_stream(futures_util::StreamExt::chain(first, futures_util::stream::pending()))
        };
        let router = Router::new()
            .route("/endless", get(async move || endless()))
            .route("/plain", get(async || "plain"));
        let (ending, ends) = watch::channel(false);
        let router = ending_with(router, ends);
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().into_body()
        };
        let (mut endless, plain) = (ask("/endless").await, ask("/plain").await);
        let first = endless.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "first");
        ending.send_replace(true);
        assert!(endless.frame().await.is_none());
        assert_eq!(plain.collect().await.unwrap().to_bytes(), "plain");
    }
}
