//! The log: JSON lines for machines, one short line for people, and nothing secret in either.
//!
//! Promises: a line has `ts` (RFC 3339, milliseconds, `Z`), `level`, `msg`, and then its fields, flat; a slow or stuck
//! reader of standard output never holds up a request; in production an unexpected error appears by its class only.
//!
//! Three names of fields mean something here: `fatal = true` raises an error's level to `fatal`; `cause` is left out
//! in production, its companion `causeClass` is not. A line that is written while a request is answered carries that
//! request's `reqId`, and where there are traces the `traceId` of what it belongs to.

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

use crate::clock::Clock;
use crate::http::envelope::RequestId;
use crate::traces::request::trace_id;

/// Lines waiting to be written. When the reader of standard output is that far behind, lines are dropped and counted.
const LINES_WAITING: usize = 8192;
/// The most that is written in one go.
const WRITE_AT_ONCE: usize = 64 * 1024;
/// How long a line may wait for others to be written with.
const GATHER: Duration = Duration::from_millis(2);
/// How long the last lines may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON lines anywhere else.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// The least serious level that is written.
    pub level: tracing::level_filters::LevelFilter,
    /// `LOG_FORMAT`
    pub format: LogFormat,
    /// Whether unexpected errors are logged by their class only, as in production.
    pub classes_only: bool,
}

/// Logs from now on to standard output, and hands spans to `traces`, for the whole process. The second call and later ones change nothing.
///
/// Keep what is returned: [`Writer::flush`] is what makes sure that the last lines are seen.
pub fn install(log: &Log, traces: Option<SdkTracer>) -> Writer {
    let for_people = match log.format {
        LogFormat::Auto => io::stdout().is_terminal(),
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    install_with(log, for_people, traces, io::stdout())
}

/// Logs from now on to `destination`, as JSON lines, for the whole process; otherwise like [`install`].
pub fn install_to(log: &Log, destination: impl Write + Send + 'static) -> Writer {
    install_with(log, false, None, destination)
}

fn install_with(
    log: &Log,
    for_people: bool,
    traces: Option<SdkTracer>,
    destination: impl Write + Send + 'static,
) -> Writer {
    let writer = Writer::to(destination);
    let subscriber = subscriber(log, for_people, writer.clone(), traces);
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    writer
}

/// A subscriber that writes lines to `writer`, and hands spans to `traces`. Without that, every span is switched off where it
/// is made.
pub fn subscriber(
    log: &Log,
    for_people: bool,
    writer: Writer,
    traces: Option<SdkTracer>,
) -> impl Subscriber + Send + Sync + 'static {
    let dependencies = log.level.min(LevelFilter::WARN);
    let targets = Targets::new()
        .with_default(dependencies)
        .with_target("attesto", log.level)
        // Slow statements, with their SQL. The request's own line has the latency.
        .with_target("sqlx::query", LevelFilter::OFF);
    let lines = Lines {
        writer,
        clock: Clock::system(),
        for_people,
        classes_only: log.classes_only,
        traced: traces.is_some(),
    };
    let lines =
        lines.with_filter(targets.and(filter_fn(is_line).with_max_level_hint(LevelFilter::TRACE)));
    // Ours only, and no events: what a line of the log may hold is not what a span may. The filter is around the option: a
    // layer that is not there would otherwise want everything.
    let (wants_spans, most) = match &traces {
        Some(_) => (true, LevelFilter::INFO),
        None => (false, LevelFilter::OFF),
    };
    let wanted = filter_fn(move |metadata| wants_spans && is_span_of_ours(metadata));
    let spans = traces.map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
    });
    let spans = spans.with_filter(wanted.with_max_level_hint(most));
    tracing_subscriber::registry().with(lines).with(spans)
}

fn is_line(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
}

fn is_span_of_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("attesto")
}

/// What a panic says goes where other causes go. Where it happened is no secret.
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

/// Writes lines on a thread of its own, so that nobody waits for a pipe.
#[derive(Clone, Debug)]
pub struct Writer {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    /// Answered when everything before it was written.
    Flush(SyncSender<()>),
}

impl Writer {
    /// A writer to `destination`. Its thread ends with the last clone.
    pub fn to(destination: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(LINES_WAITING);
        let spawned = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(destination, &receiver));
        spawned.expect("a thread for the log can be started");
        Self {
            sender,
            dropped: Arc::default(),
        }
    }

    /// Waits until every line so far was written, but not for ever.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.sender.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(LAST_WORDS);
        }
    }

    /// Whether the line was taken.
    fn line(&self, line: String) -> bool {
        let taken = self.sender.try_send(Message::Line(line)).is_ok();
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

/// A broken pipe is no reason to stop serving, so what cannot be written is let go.
fn write_lines(mut destination: impl Write, messages: &Receiver<Message>) {
    let mut batch = String::new();
    while let Ok(first) = messages.recv() {
        let mut next = Some(first);
        let mut waiting = Vec::new();
        while let Some(message) = next {
            match message {
                Message::Line(line) => batch.push_str(&line),
                Message::Flush(done) => waiting.push(done),
            }
            next = if batch.len() < WRITE_AT_ONCE {
                messages.try_recv().ok()
            } else {
                None
            };
        }
        let _ = destination.write_all(batch.as_bytes());
        let _ = destination.flush();
        batch.clear();
        if waiting.is_empty() {
            // Under load the next lines gather meanwhile, and nobody who logs has to wake this thread for each.
            std::thread::sleep(GATHER);
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}

/// Makes a line of each event.
struct Lines {
    writer: Writer,
    clock: Clock,
    for_people: bool,
    classes_only: bool,
    /// Whether there are traces, whose ids are worth a field.
    traced: bool,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_ours = metadata.target().starts_with("attesto");
        let mut line = Line {
            message: String::new(),
            fields: String::new(),
            for_people: self.for_people,
            // What a dependency puts into its fields is not known, so it stays out like a cause.
            hide_cause: self.classes_only,
            hide_fields: self.classes_only && !is_ours,
            fatal: false,
            has_request: false,
        };
        event.record(&mut line);
        if !is_ours {
            line.text("target", metadata.target());
        }
        if !line.has_request
            && let Some(request) = RequestId::current()
        {
            line.text("reqId", request.as_str());
        }
        if self.traced
            && let Some(trace) = trace_id()
        {
            line.text("traceId", &trace.to_string());
        }
        let dropped = self.writer.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            line.plain("linesDropped", dropped);
        }
        let level = if line.fatal {
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
        let text = if self.for_people {
            self.pretty(level, &line)
        } else {
            self.json(level, &line)
        };
        // The lines that this one would have told of are still untold.
        if !self.writer.line(text) {
            self.writer.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl Lines {
    fn json(&self, level: &str, line: &Line) -> String {
        let mut text = String::with_capacity(96 + line.message.len() + line.fields.len());
        let _ = write!(
            text,
            r#"{{"ts":"{}","level":"{level}","msg":"#,
            self.clock.now()
        );
        quote(&mut text, &line.message);
        text.push_str(&line.fields);
        text.push_str("}\n");
        text
    }

    fn pretty(&self, level: &str, line: &Line) -> String {
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

/// A line being made.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a plain yes or no of its own"
)]
struct Line {
    message: String,
    /// Written already, each with what stands before it.
    fields: String,
    for_people: bool,
    hide_cause: bool,
    hide_fields: bool,
    fatal: bool,
    has_request: bool,
}

impl Line {
    fn name(&mut self, name: &str) {
        if self.for_people {
            let _ = write!(self.fields, " \x1b[2m{name}=\x1b[0m");
        } else {
            // A field's name is an identifier of the source, or a dependency's: it may hold dots, and no quotes.
            let _ = write!(self.fields, r#","{name}":"#);
        }
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        let bare = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
        if self.for_people && !value.is_empty() && value.bytes().all(bare) {
            self.fields.push_str(value);
        } else {
            quote(&mut self.fields, value);
        }
    }

    fn plain(&mut self, name: &str, value: impl fmt::Display) {
        self.name(name);
        let _ = write!(self.fields, "{value}");
    }

    fn is_hidden(&self, field: &Field) -> bool {
        self.hide_fields || (self.hide_cause && field.name() == "cause")
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ if self.is_hidden(field) => {}
            name => {
                self.has_request |= name == "reqId";
                self.text(name, value);
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.record_str(field, &text);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "fatal" {
            self.fatal = value;
        } else if !self.is_hidden(field) {
            self.plain(field.name(), value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if !self.is_hidden(field) {
            self.plain(field.name(), value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !self.is_hidden(field) {
            self.plain(field.name(), value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if self.is_hidden(field) {
            return;
        }
        if value.is_finite() {
            self.plain(field.name(), value);
        } else {
            self.plain(field.name(), "null");
        }
    }
}

/// A JSON string, control characters and quotes escaped, so that nothing can end a line early.
fn quote(into: &mut String, text: &str) {
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
    use crate::clock::Timestamp;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(log: &Log, for_people: bool, events: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let writer = Writer::to(kept.clone());
        let subscriber = subscriber(log, for_people, writer.clone(), None);
        tracing::subscriber::with_default(subscriber, events);
        writer.flush();
        let bytes = kept.0.lock().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn json_lines(log: &Log, events: impl FnOnce()) -> Vec<Value> {
        lines(log, false, events)
            .iter()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect()
    }

    const INFO: Log = Log {
        level: LevelFilter::INFO,
        format: LogFormat::Json,
        classes_only: false,
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
        let log = Log {
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
        let log = Log {
            classes_only: true,
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
        let found = lines(&INFO, true, || {
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
    fn a_reader_that_is_stuck_holds_up_nobody() {
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
        let writer = Writer::to(Stuck);
        for _ in 0..LINES_WAITING * 2 {
            let _ = writer.line("x\n".to_owned());
        }
        assert!(writer.dropped.load(Ordering::Relaxed) > 0);
    }
}
