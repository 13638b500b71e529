//! The signals that ask a process to stop. The first one asks it to finish the work in progress; after a second one it
//! stops at once. Core dumps are disabled, because they would contain secrets.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Disables core dumps, which would contain every unsealed secret. On Linux this process also becomes non-dumpable: no
/// other unprivileged process can read its memory, environment or open files through `/proc`. Child processes can raise
/// their own limit again.
pub fn disable_core_dumps() {
    let limit = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: limit.maximum,
    };
    // Lowering the soft limit cannot fail.
    let _ = setrlimit(Resource::Core, none);
    // The limit has no effect where `core_pattern` pipes core dumps to a program.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// The signals that ask this process to stop.
pub struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignals {
    /// Installs handlers for both signals. From then on neither of them ends the process by default.
    pub fn register_handlers() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next_signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
