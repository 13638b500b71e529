//! Captures what is logged while a test runs.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use attesto::telemetry::{self, LogWriter};
use attesto::telemetry::{LogFormat, LogSettings};
use serde_json::Value;
use tracing::Dispatch;
use tracing::dispatcher::DefaultGuard;
use tracing::level_filters::LevelFilter;

/// The captured log.
#[derive(Clone, Default)]
pub(crate) struct Page(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs this thread, which runs the whole test, to `page`.
pub(crate) fn logging(log: &LogSettings, page: &Page) -> (LogWriter, (DefaultGuard, Dispatch)) {
    let writer = LogWriter::spawn(page.clone());
    let subscriber = || {
        Dispatch::new(telemetry::build_subscriber(
            log,
            false,
            writer.clone(),
            None,
        ))
    };
    // With a single subscriber, tracing disables a call site for all threads when a thread without
    // a subscriber reaches it first. So there are two.
    let second = subscriber();
    let first = tracing::dispatcher::set_default(&subscriber());
    (writer, (first, second))
}

/// The captured lines of a level and above it.
pub(crate) struct Warnings {
    page: Page,
    writer: LogWriter,
    _logging: (DefaultGuard, Dispatch),
}

impl Warnings {
    /// Captures warnings and errors from now on, on this thread.
    pub(crate) fn listen() -> Self {
        Self::listen_at(LevelFilter::WARN)
    }

    /// The same for another level.
    pub(crate) fn listen_at(level: LevelFilter) -> Self {
        let log = LogSettings {
            level,
            format: LogFormat::Json,
            is_cause_redacted: true,
        };
        let page = Page::default();
        let (writer, logging) = logging(&log, &page);
        Self {
            page,
            writer,
            _logging: logging,
        }
    }

    /// Checks that the line of each request that was answered with 400 has its cause, even where causes are redacted.
    pub(crate) fn assert_each_400_has_a_cause(&self) {
        let requests = self.of("http_request");
        let refused: Vec<_> = requests
            .iter()
            .filter(|line| line["status"] == 400)
            .collect();
        assert!(!refused.is_empty(), "no request was answered with 400");
        for line in refused {
            // A sentence, not the path of a type.
            let cause = line["causeClass"].as_str().unwrap_or_default();
            assert!(cause.contains(' '), "{line}");
        }
    }

    /// The lines with this message so far, without their time and level.
    pub(crate) fn of(&self, message: &str) -> Vec<Value> {
        self.writer.flush();
        let bytes = self.page.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("text");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let mut lines: Vec<Value> = lines
            .filter(|line: &Value| line["msg"] == message)
            .collect();
        for line in &mut lines {
            let line = line.as_object_mut().expect("an object");
            line.retain(|name, _| !["ts", "level", "msg"].contains(&name.as_str()));
        }
        lines
    }
}
