//! Connections that lost their place before they had one answer: they are not read from any more, but stay open for a while.
//!
//! A client that only takes up places comes again the moment its connection is closed, and then taking connections is all that the
//! server does. While its connection is open it waits. What is held has no buffers here and next to none in the system.

use std::sync::Arc;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shared::ConnectionLimits;

/// What the system keeps of what a held connection still sends: its minimum, which is twice as much on Linux.
const RECEIVE_BUFFER_BYTES: usize = 1024;

/// Holds connections, up to a number of them. Clones share it.
#[derive(Clone)]
pub(super) struct HeldConnections {
    places: Arc<Semaphore>,
    hold_timeout: std::time::Duration,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl HeldConnections {
    /// `tasks` is told of every held connection; all are closed when `stopping` is cancelled.
    pub(super) fn new(
        limits: &ConnectionLimits,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.max_held_connections)),
            hold_timeout: limits.hold_timeout,
            tasks,
            stopping,
        }
    }

    /// Closes the connection after [`ConnectionLimits::hold_timeout`], or at once when too many are held.
    pub(super) fn hold(&self, stream: TcpStream) {
        let (Ok(place), Ok(runtime)) = (
            self.places.clone().try_acquire_owned(),
            Handle::try_current(),
        ) else {
            return;
        };
        // Where the system refuses, it keeps as much as of every other connection.
        let _ = set_socket_recv_buffer_size(&stream, RECEIVE_BUFFER_BYTES);
        let (stopping, hold_timeout) = (self.stopping.clone(), self.hold_timeout);
        let held = async move {
            let _ = stopping.run_until_cancelled(sleep(hold_timeout)).await;
            drop((stream, place));
        };
        self.tasks.spawn_on(held, &runtime);
    }
}
