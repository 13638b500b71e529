//! The bytes of one connection, with three behaviours that the HTTP library lacks.
//!
//! *Strict line ends.* The library takes a bare line feed for the end of a line, as RFC 9112 allows; a proxy in front
//! may not, and then the two disagree where a header ends. A bare line feed in a request's head is replaced by a byte
//! that no head may hold, and the head is ended there, so that the request is refused with 400.
//!
//! *Lingering close.* A request can be answered before all of it was read (its body is too large). Closing a socket
//! with unread bytes makes the kernel reset the connection, and the answer may be lost on its way. So the sending half
//! is closed first, and what still comes is read and thrown away for a moment: of all connections together no more than
//! [`MAX_DISCARDED_KIB_PER_SECOND`], or a crowd of senders that are refused would keep the processors busy with it.
//!
//! *One body for every error.* What is no HTTP request at all is answered by the library itself, with nothing but a
//! status. That answer is replaced by one like all others.

use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use governor::clock::Clock as _;
use governor::{Quota, RateLimiter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

use super::connection_table::OpenConnection;
use super::head_scanner::RequestHeadScanner;
use super::shared::ServerState;
use crate::base::clock::Clock;
use crate::base::governor_clock::{DirectRateLimiter, GovernorClock};

/// The end of a request's head.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// How much is read and thrown away at once.
const DISCARD_BUFFER_BYTES: usize = 16 * 1024;
/// The same in KiB.
const DISCARD_BUFFER_KIB: NonZeroU32 = NonZeroU32::new(16).unwrap();
/// How often that is done before others get a turn.
const MAX_DISCARD_READS: usize = 8;
/// How much is thrown away in a second, of all connections together. A burst may be a sixteenth of it.
const MAX_DISCARDED_KIB_PER_SECOND: NonZeroU32 = NonZeroU32::new(64 * 1024).unwrap();
const DISCARD_BURST_KIB: NonZeroU32 = NonZeroU32::new(4 * 1024).unwrap();

/// How much is read and thrown away, of all connections together.
pub(super) struct DiscardLimiter(DirectRateLimiter);

impl DiscardLimiter {
    pub(super) fn new(clock: Clock) -> Self {
        let quota = Quota::per_second(MAX_DISCARDED_KIB_PER_SECOND).allow_burst(DISCARD_BURST_KIB);
        let clock = GovernorClock::new(clock);
        Self(RateLimiter::direct_with_clock(quota, clock))
    }

    /// `None` when a buffer may be read; else when to ask again.
    fn next_turn(&self) -> Option<Duration> {
        let later = self.0.check_n(DISCARD_BUFFER_KIB).ok()?.err()?;
        Some(later.wait_time_from(self.0.clock().now()))
    }
}

/// A connection as it arrived, or with TLS around it.
pub(super) type BoxedStream = Box<dyn ByteStream>;

/// What bytes are read from and written to.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The connection without TLS around it.
    fn into_connection(self: Box<Self>) -> TcpStream;
}

impl ByteStream for TcpStream {
    fn into_connection(self: Box<Self>) -> TcpStream {
        *self
    }
}

impl ByteStream for TlsStream<TcpStream> {
    fn into_connection(self: Box<Self>) -> TcpStream {
        self.into_inner().0
    }
}

/// A connection's socket.
pub(super) struct ConnectionSocket {
    /// `None` only once it is dropped.
    stream: Option<BoxedStream>,
    open: Arc<OpenConnection>,
    server: Arc<ServerState>,
    head_scanner: RequestHeadScanner,
    /// How much of [`HEAD_END`] the library has read behind a head that is to be refused.
    head_end_read: usize,
    /// What is still to be written of an answer that took the place of the library's.
    replacement_response: Vec<u8>,
    close_state: CloseState,
}

enum CloseState {
    Open,
    /// The sending half is closed; what comes is thrown away until the sender ends or the time does.
    Lingering {
        end: Pin<Box<Sleep>>,
        /// Set while others have used up what may be thrown away.
        turn: Option<Pin<Box<Sleep>>>,
    },
    Closed,
}

impl ConnectionSocket {
    /// Around a stream.
    pub(super) fn new(
        stream: BoxedStream,
        open: Arc<OpenConnection>,
        server: Arc<ServerState>,
    ) -> Self {
        Self {
            stream: Some(stream),
            open,
            server,
            head_scanner: RequestHeadScanner::new(),
            head_end_read: 0,
            replacement_response: Vec::new(),
            close_state: CloseState::Open,
        }
    }

    fn stream(&mut self) -> Pin<&mut BoxedStream> {
        Pin::new(self.stream.as_mut().expect("it was not dropped"))
    }

    fn poll_write_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream.as_mut().expect("it was not dropped");
        while !self.replacement_response.is_empty() {
            let written =
                ready!(Pin::new(&mut *stream).poll_write(cx, &self.replacement_response))?;
            self.replacement_response.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the place of `bytes` when they are an answer of the library's own making.
    fn replace_bare_error(
        &mut self,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Option<Poll<io::Result<usize>>> {
        let status = bare_error_status(bytes)?;
        let client = self.open.info.client();
        let layer = &self.server.request_layer;
        self.replacement_response = layer.malformed_request_response(status, client);
        // What does not fit now is written before anything else and before the end.
        match self.poll_write_replacement(cx) {
            Poll::Ready(Err(problem)) => Some(Poll::Ready(Err(problem))),
            _ => Some(Poll::Ready(Ok(bytes.len()))),
        }
    }
}

/// The status of an answer that no handler made: no handler's is without our version, and no other is without a body.
fn bare_error_status(bytes: &[u8]) -> Option<StatusCode> {
    let rest = bytes.strip_prefix(b"HTTP/1.1 ")?;
    let status = StatusCode::from_bytes(rest.get(..3)?).ok()?;
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let is_bare = status.is_client_error()
        && bytes.ends_with(b"\r\n\r\n")
        && holds(b"content-length: 0\r\n")
        && !holds(b"x-attesto-version: ");
    is_bare.then_some(status)
}

impl AsyncRead for ConnectionSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The library looks at a head when all of it has arrived, and its sender may think that it has.
        if self.head_scanner.has_replaced() && self.head_end_read < HEAD_END.len() {
            let rest = &HEAD_END[self.head_end_read..];
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..count]);
            self.head_end_read += count;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(self.stream().poll_read(cx, buffer))?;
        let this = &mut *self;
        let (in_hand, finished) = this.open.activity.request_counts();
        this.head_scanner
            .scan_bytes(&mut buffer.filled_mut()[before..], in_hand, finished);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConnectionSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_replacement(cx))?;
        if let Some(replaced) = self.replace_bare_error(bytes, cx) {
            return replaced;
        }
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_replacement(cx))?;
        // The library ends its answer in one piece.
        if let [only] = bytes
            && let Some(replaced) = self.replace_bare_error(only, cx)
        {
            return replaced;
        }
        self.stream().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_replacement(cx))?;
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_replacement(cx))?;
        let this = &mut *self;
        let stream = this.stream.as_mut().expect("it was not dropped");
        loop {
            match &mut this.close_state {
                CloseState::Open => {
                    ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                    // A server that stops has no time for this.
                    this.close_state = if this.server.graceful_shutdown.is_cancelled() {
                        CloseState::Closed
                    } else {
                        CloseState::Lingering {
                            end: Box::pin(sleep(this.server.limits.linger_timeout)),
                            turn: None,
                        }
                    };
                }
                CloseState::Lingering { end, turn } => {
                    if end.as_mut().poll(cx).is_pending() {
                        ready!(poll_discard(stream, &this.server.discards, turn, cx));
                    }
                    this.close_state = CloseState::Closed;
                }
                CloseState::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A connection that lost its place before it had one answer is held; any other is closed, so that its client connects anew. So is
/// a trusted proxy's, which would send a client's request on a held one.
impl Drop for ConnectionSocket {
    fn drop(&mut self) {
        let (_, finished) = self.open.activity.request_counts();
        if let Some(stream) = self.stream.take()
            && self.open.evicted.is_cancelled()
            && finished == 0
            && !self.open.info.is_trusted_proxy()
        {
            self.server.held.hold(stream.into_connection());
        }
    }
}

/// Ready when nothing more will come.
fn poll_discard(
    stream: &mut BoxedStream,
    limiter: &DiscardLimiter,
    turn: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let mut bytes = [0; DISCARD_BUFFER_BYTES];
    for _ in 0..MAX_DISCARD_READS {
        if let Some(wait) = turn {
            ready!(wait.as_mut().poll(cx));
        }
        *turn = limiter.next_turn().map(|wait| Box::pin(sleep(wait)));
        if turn.is_some() {
            continue;
        }
        let mut buffer = ReadBuf::new(&mut bytes);
        match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {}
            Ok(()) | Err(_) => return Poll::Ready(()),
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    #[test]
    fn no_more_is_thrown_away_than_64_mebibytes_a_second() {
        let clock = Clock::fixed(Timestamp::from_millis(0));
        let limiter = DiscardLimiter::new(clock.clone());
        let buffers_read = || {
            (0..10_000)
                .take_while(|_| limiter.next_turn().is_none())
                .count()
        };
        assert_eq!(buffers_read() * DISCARD_BUFFER_BYTES, 4 << 20);
        let wait = limiter.next_turn().expect("all is used up");
        assert!(wait <= Duration::from_millis(1), "{wait:?}");
        clock.advance(Duration::from_millis(10));
        // The limiter rounds to nanoseconds.
        assert!((40..=41).contains(&buffers_read()));
    }

    #[test]
    fn only_the_librarys_own_answer_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
            content-length: 0\r\ndate: Sat, 21 Nov 2026 10:51:05 GMT\r\n\r\n";
        assert_eq!(bare_error_status(bare).unwrap(), 431);
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nx-attesto-version: 1\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "",
        ] {
            assert_eq!(bare_error_status(other.as_bytes()), None, "{other}");
        }
    }
}
