//! What a handler leaves of a request's body when it answers without it: to a wrong key, or a body that is too large.
//!
//! On an HTTP/1.1 connection the next request follows the body, so its rest is either read or the answer says
//! `connection: close` (RFC 9112, sections 9.3 and 9.6). A client that is not told so sends its next request on a connection that
//! is being closed, and cannot know whether that one was handled.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::timeout;

/// A longer rest is not read: a new connection costs less.
const MAX_UNREAD_BYTES: u64 = 64 * 1024;

/// The body of one request, once its handler has dropped it.
pub(super) struct UnreadBody {
    rest: SharedRest,
    expects_continue: bool,
}

type SharedRest = Arc<Mutex<Option<BodyRest>>>;

/// `None` instead of this if the handler still has the body, or stopped in the middle of it because something is wrong with it.
enum BodyRest {
    Nothing,
    Everything(Incoming),
}

impl UnreadBody {
    /// The request for the handler. `None` if it has no body.
    pub(super) fn watch(request: Request<Incoming>) -> (Request<Body>, Option<Self>) {
        if request.body().is_end_stream() {
            return (request.map(Body::new), None);
        }
        let rest = SharedRest::default();
        let unread = Self {
            rest: rest.clone(),
            expects_continue: request.headers().contains_key(header::EXPECT),
        };
        let request = request.map(|body| {
            Body::new(WatchedBody {
                body: Some(body),
                has_begun: false,
                rest,
            })
        });
        (request, Some(unread))
    }

    /// Reads what is left, if that is little and arrives within `within`. Whether the connection can take another request.
    pub(super) async fn read_rest(self, within: Duration) -> bool {
        let rest = self.rest.lock().take();
        match rest {
            Some(BodyRest::Nothing) => true,
            // To read from it would ask the client to send it.
            Some(BodyRest::Everything(_)) if self.expects_continue => false,
            Some(BodyRest::Everything(body)) => {
                let read = timeout(within, read_to_end(body)).await;
                read.unwrap_or(false)
            }
            None => false,
        }
    }
}

/// False if the body is longer than [`MAX_UNREAD_BYTES`] or breaks off.
async fn read_to_end(mut body: Incoming) -> bool {
    let mut left = MAX_UNREAD_BYTES;
    while body.size_hint().lower() <= left {
        let Some(frame) = body.frame().await else {
            return true;
        };
        let Ok(frame) = frame else {
            return false;
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let Some(after) = left.checked_sub(bytes as u64) else {
            return false;
        };
        left = after;
    }
    false
}

/// The body as its handler reads it.
struct WatchedBody {
    /// `None` after its end.
    body: Option<Incoming>,
    has_begun: bool,
    rest: SharedRest,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.has_begun = true;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if frame.is_none() {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.body.as_ref();
        body.map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        let left = match self.body.take() {
            None => Some(BodyRest::Nothing),
            Some(body) if !self.has_begun => Some(BodyRest::Everything(body)),
            Some(_) => None,
        };
        *self.rest.lock() = left;
    }
}
