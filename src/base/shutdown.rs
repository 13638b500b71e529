//! One signal to stop: finish what is in hand, and leave. A second one: leave now. However a process ends, it leaves no
//! image of its memory.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From now on a crash leaves no core, in which every opened secret would be. On Linux no other unprivileged process
/// looks into this process either: at its memory, its variables, its files. Programs that it starts may leave a core when
/// they ask for it.
pub fn disable_core_dumps() {
    let limit = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: limit.maximum,
    };
    // Neither can be refused: less is always granted.
    let _ = setrlimit(Resource::Core, none);
    // Where the machine hands a core to a program, the limit means nothing.
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
    /// Takes both signals over: from now on neither ends the process by itself.
    pub fn register_handlers() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and tells its name.
    pub async fn next_signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
