//! Bounds how many bytes are read for one answer.
//!
//! The HTTP parser bounds the size of one head, but not the number of heads: a receiver can send `103 Early Hints` without
//! end. So a connection counts everything that it has read since the request was sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes may still be read for the current answer. Clones share the number.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadBudget(Arc<BudgetState>);

#[derive(Debug, Default)]
struct BudgetState {
    left: AtomicUsize,
    /// Whether the connection began with a TLS record.
    begins_with_tls: AtomicBool,
}

/// The types of a TLS record, and the first byte of its version.
const TLS_RECORD_TYPES: std::ops::RangeInclusive<u8> = 0x14..=0x17;
const TLS_MAJOR_VERSION: u8 = 0x03;

impl ReadBudget {
    /// Call it before each request.
    pub(super) fn reset_to(&self, bytes: usize) {
        self.0.left.store(bytes, Ordering::Relaxed);
    }

    /// Whether the answer has reached the limit.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.left.load(Ordering::Relaxed) == 0
    }

    /// How many bytes of `most`, to which it was reset, were read.
    pub(super) fn bytes_read_of(&self, most: usize) -> usize {
        most.saturating_sub(self.0.left.load(Ordering::Relaxed))
    }

    /// Whether the server began with a TLS record on this connection, which is to say that plain text was read as TLS there.
    pub(super) fn is_tls_record(&self) -> bool {
        self.0.begins_with_tls.load(Ordering::Relaxed)
    }

    fn note_first_bytes(&self, bytes: &[u8]) {
        if let [kind, TLS_MAJOR_VERSION, ..] = bytes
            && TLS_RECORD_TYPES.contains(kind)
        {
            self.0.begins_with_tls.store(true, Ordering::Relaxed);
        }
    }

    fn consume_bytes(&self, bytes: usize) {
        // There is one reader, and the budget is not reset while it reads.
        let left = self.0.left.load(Ordering::Relaxed);
        self.0
            .left
            .store(left.saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// A connection whose reads fail once the budget is used up. The last read may exceed it.
#[derive(Debug)]
pub(super) struct BudgetedStream<S> {
    inner: S,
    read_budget: ReadBudget,
    has_read: bool,
}

impl<S> BudgetedStream<S> {
    /// A new connection, from which nothing was read.
    pub(super) fn new(inner: S, read_budget: ReadBudget) -> Self {
        Self {
            inner,
            read_budget,
            has_read: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BudgetedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read_budget.is_exhausted() {
            return Poll::Ready(Err(io::Error::other("the answer is too large")));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let read = &buffer.filled()[before..];
        if !self.has_read {
            self.read_budget.note_first_bytes(read);
        }
        self.read_budget.consume_bytes(read.len());
        self.has_read |= !read.is_empty();
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BudgetedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
