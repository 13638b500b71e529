//! The log: JSON lines for machines, or one short line for each event for people. Neither contains secrets.
//!
//! Guarantees: a line has `ts` (RFC 3339, milliseconds, `Z`), `level`, `msg`, and then its fields, not nested. A slow
//! or blocked reader of standard output never delays a request. In production, an unexpected error is logged by its
//! class only.
//!
//! Three fields have a special meaning. `fatal = true` raises the level of an error to `fatal`. `cause` is omitted in
//! production, where `causeClass` remains. A line that is logged while a request is answered has the request's `reqId`
//! and, if traces are on, its `traceId`.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::request_span::current_trace_id;
use crate::base::clock::Clock;

/// The maximum number of lines that wait to be written. Further lines are dropped and counted.
const MAX_QUEUED_LINES: usize = 8192;
/// The length after which collected lines are written, in bytes.
const MAX_WRITE_BYTES: usize = 64 * 1024;
/// How long the writer waits after a write, so that further lines are written together.
const BATCH_INTERVAL: Duration = Duration::from_millis(2);
/// How long a flush waits for the queued lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

tokio::task_local! {
    static REQUEST_ID: Arc<str>;
}

/// Runs `work` for the request with this id: lines that it logs have the id in `reqId`.
pub fn scope_request_id<F: Future>(id: Arc<str>, work: F) -> impl Future<Output = F::Output> {
    REQUEST_ID.scope(id, work)
}

/// The id of the request that the current task is answering.
pub fn current_request_id() -> Option<Arc<str>> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON lines anywhere else.
    Auto,
    /// One JSON object for each line.
    Json,
    /// One short line of text, for terminals.
    Pretty,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// The least severe level that is logged.
    pub level: tracing::level_filters::LevelFilter,
    /// The value of `LOG_FORMAT`.
    pub format: LogFormat,
    /// Whether the field `cause` is omitted, as in production.
    pub is_cause_redacted: bool,
}

/// Logs to standard output and passes spans to `traces` from now on, in the whole process. Only the first call has an
/// effect.
///
/// Keep the returned writer and call [`LogWriter::flush`] before the process ends, so that the last lines are written.
pub fn install_logging(log: &LogSettings, traces: Option<SdkTracer>) -> LogWriter {
    let is_pretty = match log.format {
        LogFormat::Auto => io::stdout().is_terminal(),
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    install_with(log, is_pretty, traces, io::stdout())
}

/// Like [`install_logging`], but writes JSON lines to `destination`.
pub fn install_to(log: &LogSettings, destination: impl Write + Send + 'static) -> LogWriter {
    install_with(log, false, None, destination)
}

fn install_with(
    log: &LogSettings,
    is_pretty: bool,
    traces: Option<SdkTracer>,
    destination: impl Write + Send + 'static,
) -> LogWriter {
    let writer = LogWriter::spawn(destination);
    let subscriber = build_subscriber(log, is_pretty, writer.clone(), traces);
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    writer
}

/// A subscriber that writes log lines to `writer` and passes spans to `traces`. Without `traces`, all spans are
/// disabled when they are made.
pub fn build_subscriber(
    log: &LogSettings,
    is_pretty: bool,
    writer: LogWriter,
    traces: Option<SdkTracer>,
) -> impl Subscriber + Send + Sync + 'static {
    let dependencies = log.level.min(LevelFilter::WARN);
    let targets = Targets::new()
        .with_default(dependencies)
        .with_target("attesto", log.level)
        // sqlx logs slow statements with their SQL. The line of each request has its duration.
        .with_target("sqlx::query", LevelFilter::OFF);
    let lines = LogLayer {
        writer,
        clock: Clock::system(),
        is_pretty,
        is_cause_redacted: log.is_cause_redacted,
        has_traces: traces.is_some(),
    };
    let lines = lines
        .with_filter(targets.and(filter_fn(is_log_event).with_max_level_hint(LevelFilter::TRACE)));
    // Only spans of this crate and no events, because log lines may contain what spans must not. The filter is applied
    // to the option: a layer that is `None` would otherwise enable every span.
    let (wants_spans, max_level) = match &traces {
        Some(_) => (true, LevelFilter::INFO),
        None => (false, LevelFilter::OFF),
    };
    let span_filter = filter_fn(move |metadata| wants_spans && is_own_span(metadata));
    let spans = traces.map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
    });
    let spans = spans.with_filter(span_filter.with_max_level_hint(max_level));
    tracing_subscriber::registry().with(lines).with(spans)
}

fn is_log_event(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
}

fn is_own_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("attesto")
}

/// The panic's message is logged as `cause`, which production omits. Its location is not secret.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let cause = panic.payload_as_str().unwrap_or("not a text");
    let place = panic.location().map(ToString::to_string);
    tracing::error!(
        cause,
        causeClass = "panic",
        place = place.as_deref(),
        "panic"
    );
}

/// Writes lines in a thread of its own, so that no task waits for a slow reader of the log.
///
/// `tracing-appender` is not used. It can only be flushed by ending it; if its queue is full then, it prints to
/// standard output, which blocks if the reader of standard output is blocked. It also wakes its thread for every line,
/// where this writer collects lines for 2 ms.
#[derive(Clone, Debug)]
pub struct LogWriter {
    sender: SyncSender<WriterMessage>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum WriterMessage {
    Line(String),
    /// Answered when all earlier lines are written.
    Flush(SyncSender<()>),
}

impl LogWriter {
    /// Starts a thread that writes to `destination`. The thread ends when the last clone is dropped.
    pub fn spawn(destination: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(MAX_QUEUED_LINES);
        let spawned = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(destination, &receiver));
        spawned.expect("a thread for the log can be started");
        Self {
            sender,
            dropped: Arc::default(),
        }
    }

    /// Waits until all earlier lines are written, for at most [`FLUSH_TIMEOUT`].
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.sender.try_send(WriterMessage::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    /// Returns false if the queue was full and the line was dropped.
    fn enqueue_line(&self, line: String) -> bool {
        let taken = self.sender.try_send(WriterMessage::Line(line)).is_ok();
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

/// Write errors are ignored: a closed pipe must not stop the service.
fn write_lines(mut destination: impl Write, messages: &Receiver<WriterMessage>) {
    let mut batch = String::new();
    while let Ok(first) = messages.recv() {
        let mut next = Some(first);
        let mut waiting = Vec::new();
        while let Some(message) = next {
            match message {
                WriterMessage::Line(line) => batch.push_str(&line),
                WriterMessage::Flush(done) => waiting.push(done),
            }
            next = if batch.len() < MAX_WRITE_BYTES {
                messages.try_recv().ok()
            } else {
                None
            };
        }
        let _ = destination.write_all(batch.as_bytes());
        let _ = destination.flush();
        batch.clear();
        if waiting.is_empty() {
            // Under load, further lines are queued during this pause, so that the thread is not woken for each of them.
            std::thread::sleep(BATCH_INTERVAL);
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}

/// Formats each event as a line.
struct LogLayer {
    writer: LogWriter,
    clock: Clock,
    is_pretty: bool,
    is_cause_redacted: bool,
    /// Whether traces are on, so that `traceId` is logged.
    has_traces: bool,
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_ours = metadata.target().starts_with("attesto");
        let mut line = LogLine {
            message: String::new(),
            fields: String::new(),
            is_pretty: self.is_pretty,
            // The content of a dependency's fields is not known, so they are omitted like a cause.
            hide_cause: self.is_cause_redacted,
            hide_fields: self.is_cause_redacted && !is_ours,
            is_fatal: false,
            has_request_id: false,
        };
        event.record(&mut line);
        if !is_ours {
            line.push_text("target", metadata.target());
        }
        if !line.has_request_id
            && let Some(id) = current_request_id()
        {
            line.push_text("reqId", &id);
        }
        if self.has_traces
            && let Some(trace) = current_trace_id()
        {
            line.push_text("traceId", &trace.to_string());
        }
        let dropped = self.writer.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            line.push_plain("linesDropped", dropped);
        }
        let level = if line.is_fatal {
            "fatal"
        } else {
            match *metadata.level() {
                Level::ERROR => "error",
                Level::WARN => "warn",
                Level::INFO => "info",
                Level::DEBUG => "debug",
                Level::TRACE => "trace",
            }
        };
        let text = if self.is_pretty {
            self.format_pretty(level, &line)
        } else {
            self.format_json(level, &line)
        };
        // The count of dropped lines was dropped with this line: keep it for the next one.
        if !self.writer.enqueue_line(text) {
            self.writer.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl LogLayer {
    fn format_json(&self, level: &str, line: &LogLine) -> String {
        let mut text = String::with_capacity(96 + line.message.len() + line.fields.len());
        let _ = write!(
            text,
            r#"{{"ts":"{}","level":"{level}","msg":"#,
            self.clock.now()
        );
        push_json_string(&mut text, &line.message);
        text.push_str(&line.fields);
        text.push_str("}\n");
        text
    }

    fn format_pretty(&self, level: &str, line: &LogLine) -> String {
        let color = match level {
            "fatal" | "error" => "\x1b[31m",
            "warn" => "\x1b[33m",
            "info" => "\x1b[32m",
            _ => "\x1b[2m",
        };
        let now = self.clock.now().to_string();
        let time = now.get(11..23).unwrap_or(&now);
        let message: String = line
            .message
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .collect();
        format!(
            "\x1b[2m{time}\x1b[0m {color}{level:<5}\x1b[0m {message}{}\n",
            line.fields
        )
    }
}

/// A line that is being formatted.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a plain yes or no of its own"
)]
struct LogLine {
    message: String,
    /// The fields as formatted text, each with its separator.
    fields: String,
    is_pretty: bool,
    hide_cause: bool,
    hide_fields: bool,
    is_fatal: bool,
    has_request_id: bool,
}

impl LogLine {
    fn push_name(&mut self, name: &str) {
        if self.is_pretty {
            let _ = write!(self.fields, " \x1b[2m{name}=\x1b[0m");
        } else {
            // A field's name is an identifier of this code or of a dependency. It may contain dots, but no quotes.
            let _ = write!(self.fields, r#","{name}":"#);
        }
    }

    fn push_text(&mut self, name: &str, value: &str) {
        self.push_name(name);
        let bare = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
        if self.is_pretty && !value.is_empty() && value.bytes().all(bare) {
            self.fields.push_str(value);
        } else {
            push_json_string(&mut self.fields, value);
        }
    }

    fn push_plain(&mut self, name: &str, value: impl fmt::Display) {
        self.push_name(name);
        let _ = write!(self.fields, "{value}");
    }

    fn is_hidden(&self, field: &Field) -> bool {
        self.hide_fields || (self.hide_cause && field.name() == "cause")
    }
}

impl Visit for LogLine {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ if self.is_hidden(field) => {}
            name => {
                self.has_request_id |= name == "reqId";
                self.push_text(name, value);
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.record_str(field, &text);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "fatal" {
            self.is_fatal = value;
        } else if !self.is_hidden(field) {
            self.push_plain(field.name(), value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if !self.is_hidden(field) {
            self.push_plain(field.name(), value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !self.is_hidden(field) {
            self.push_plain(field.name(), value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if self.is_hidden(field) {
            return;
        }
        if value.is_finite() {
            self.push_plain(field.name(), value);
        } else {
            self.push_plain(field.name(), "null");
        }
    }
}

/// Writes a JSON string. Quotes and control characters are escaped, so that no text can end a line.
fn push_json_string(into: &mut String, text: &str) {
    into.push('"');
    for letter in text.chars() {
        match letter {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            letter if letter.is_control() => {
                let _ = write!(into, "\\u{:04x}", u32::from(letter));
            }
            letter => into.push(letter),
        }
    }
    into.push('"');
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use serde_json::{Value, json};

    use super::*;
    use crate::base::clock::Timestamp;

    #[derive(Clone, Default)]
    struct CapturedOutput(Arc<Mutex<Vec<u8>>>);

    impl Write for CapturedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn capture_lines(log: &LogSettings, is_pretty: bool, events: impl FnOnce()) -> Vec<String> {
        let kept = CapturedOutput::default();
        let writer = LogWriter::spawn(kept.clone());
        let subscriber = build_subscriber(log, is_pretty, writer.clone(), None);
        tracing::subscriber::with_default(subscriber, events);
        writer.flush();
        let bytes = kept.0.lock().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn json_lines(log: &LogSettings, events: impl FnOnce()) -> Vec<Value> {
        capture_lines(log, false, events)
            .iter()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect()
    }

    const INFO: LogSettings = LogSettings {
        level: LevelFilter::INFO,
        format: LogFormat::Json,
        is_cause_redacted: false,
    };

    #[test]
    fn a_line_is_flat_json() {
        let found = json_lines(&INFO, || {
            tracing::info!(
                port = 8080_u16,
                env = "test",
                ok = true,
                none = None::<&str>,
                "listening"
            );
            tracing::error!(fatal = true, error = "a\n\"b\"\u{1b}[0m", "startup_failed");
            tracing::info!(latencyMs = 1.25, "http_request");
            tracing::debug!("not shown");
        });
        assert_eq!(found.len(), 3);
        let moment = found[0]["ts"].as_str().unwrap();
        assert_eq!(Timestamp::parse(moment).unwrap().to_string(), moment);
        let without_time = |line: &Value| {
            let mut line = line.clone();
            line.as_object_mut().unwrap().remove("ts");
            line
        };
        assert_eq!(
            without_time(&found[0]),
            json!({"level": "info", "msg": "listening", "port": 8080, "env": "test", "ok": true})
        );
        assert_eq!(
            without_time(&found[1]),
            json!({"level": "fatal", "msg": "startup_failed", "error": "a\n\"b\"\u{1b}[0m"})
        );
        assert_eq!(found[2]["latencyMs"], 1.25);
    }

    #[test]
    fn without_a_collector_a_span_is_nothing() {
        let log = LogSettings {
            level: LevelFilter::TRACE,
            ..INFO
        };
        let found = json_lines(&log, || {
            let span = tracing::info_span!("request");
            assert!(span.is_disabled());
            span.in_scope(|| tracing::info!("within"));
        });
        assert_eq!(found.len(), 1);
        assert!(found[0].get("traceId").is_none());
    }

    #[test]
    fn production_shows_causes_by_class_and_dependencies_by_message() {
        let log = LogSettings {
            is_cause_redacted: true,
            ..INFO
        };
        let found = json_lines(&log, || {
            tracing::error!(
                cause = "hunter2",
                causeClass = "database Io",
                "http_request"
            );
            tracing::warn!(target: "hyper::proto", peer = "hunter2", "odd");
            tracing::info!(target: "hyper::proto", "not shown");
            tracing::warn!(target: "sqlx::query", "select hunter2");
        });
        assert_eq!(found.len(), 2);
        assert_eq!(found[0]["causeClass"], "database Io");
        assert_eq!(found[1]["target"], "hyper::proto");
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn a_person_reads_one_line_without_foreign_control_characters() {
        let found = capture_lines(&INFO, true, || {
            tracing::info!(
                path = "/x",
                note = "two words",
                evil = "\u{1b}[2J",
                "http_request"
            );
        });
        assert_eq!(found.len(), 1);
        let plain = found[0].replace("\u{1b}[2m", "").replace("\u{1b}[0m", "");
        let plain = plain.replace("\u{1b}[32m", "");
        assert!(
            plain.ends_with(r#"info  http_request path=/x note="two words" evil="\u001b[2J""#),
            "{plain}"
        );
    }

    #[test]
    fn a_stuck_reader_blocks_no_writer() {
        struct Stuck;
        impl Write for Stuck {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                std::thread::park();
                Ok(0)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let writer = LogWriter::spawn(Stuck);
        for _ in 0..MAX_QUEUED_LINES * 2 {
            let _ = writer.enqueue_line("x\n".to_owned());
        }
        assert!(writer.dropped.load(Ordering::Relaxed) > 0);
    }
}
