//! Writes results to stdout: one JSON object a line, or tables and text when stdout is a terminal.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use serde::Serialize;
use serde_json::Value;

/// The value of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Tables and text on a terminal, JSON lines otherwise.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Tables and text.
    Table,
}

/// Writes the results of one command.
pub(crate) struct OutputWriter {
    is_human_readable: bool,
    /// `--output json` was given; not set when JSON is only the default because stdout is no terminal.
    is_json_requested: bool,
    /// Columns of the terminal. `None`: stdout is no terminal, lines may have any length.
    width: Option<u16>,
    /// Whether what is written can be read by no program and no person.
    is_discarded: bool,
    writer: Mutex<Box<dyn Write + Send>>,
}

/// Whether a pipe whose other end is closed is an error. Not where a line only informs: `attesto key list … | head -1` closes
/// the pipe early.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClosedPipe {
    Ignored,
    Error,
}

impl OutputWriter {
    pub(crate) fn for_stdout(format: OutputFormat) -> Self {
        let is_human_readable = match format {
            OutputFormat::Auto => io::stdout().is_terminal(),
            OutputFormat::Json => false,
            OutputFormat::Table => true,
        };
        Self {
            is_json_requested: format == OutputFormat::Json,
            width: terminal_width(),
            is_discarded: is_stdout_discarded(),
            ..Self::with_writer(is_human_readable, io::stdout())
        }
    }

    pub(crate) fn with_writer(
        is_human_readable: bool,
        writer: impl Write + Send + 'static,
    ) -> Self {
        Self {
            is_human_readable,
            is_json_requested: false,
            width: None,
            is_discarded: false,
            writer: Mutex::new(Box::new(writer)),
        }
    }

    /// Tables and text are wanted, not JSON.
    pub(crate) fn is_human_readable(&self) -> bool {
        self.is_human_readable
    }

    /// Writes one result: a JSON line, or a line for each of its fields.
    pub(crate) fn write_object<T: Serialize>(&self, result: &T) -> io::Result<()> {
        if !self.is_human_readable {
            return self.write_json_line(result);
        }
        self.write_line(&self.render_record(&serde_json::to_value(result)?))
    }

    /// Writes one result: a JSON line, or this text.
    pub(crate) fn write_json_or_text<T: Serialize>(
        &self,
        result: &T,
        text: &str,
    ) -> io::Result<()> {
        if self.is_human_readable {
            self.write_line(&replace_control_chars(text))
        } else {
            self.write_json_line(result)
        }
    }

    /// Like [`write_json_or_text`](Self::write_json_or_text), for a secret that cannot be shown again: an error also when
    /// the other end of the pipe is closed, or stdout is.
    pub(crate) fn write_one_time_secret<T: Serialize>(
        &self,
        result: &T,
        text: &str,
    ) -> io::Result<()> {
        let text = if self.is_human_readable {
            replace_control_chars(text)
        } else {
            serde_json::to_string(result)?
        };
        if self.is_discarded {
            return Err(io::Error::other(
                "standard output is closed, or is the null device",
            ));
        }
        self.write_text(&text, ClosedPipe::Error)
    }

    /// Writes one result that is meant to become a file: `text` unchanged, also into a pipe; a JSON line only with
    /// `--output json`.
    pub(crate) fn write_raw_text<T: Serialize>(&self, result: &T, text: &str) -> io::Result<()> {
        if self.is_json_requested {
            self.write_json_line(result)
        } else {
            self.write_line(text)
        }
    }

    /// Writes the progress of a command as a JSON line; nothing on a terminal, where a [progress bar](super::progress)
    /// shows it.
    pub(crate) fn write_progress_json<T: Serialize>(&self, step: &T) -> io::Result<()> {
        if self.is_human_readable {
            Ok(())
        } else {
            self.write_json_line(step)
        }
    }

    /// Writes several results: a JSON line for each, or a table of the named fields; `a.b` names field `b` of the object `a`. Where the table is wider than the
    /// terminal, each result becomes a block of lines. `when_empty` replaces a table without rows.
    pub(crate) fn write_rows<T: Serialize>(
        &self,
        results: &[T],
        columns: &[&str],
        when_empty: &str,
    ) -> io::Result<()> {
        if !self.is_human_readable {
            return results
                .iter()
                .try_for_each(|result| self.write_json_line(result));
        }
        if results.is_empty() {
            return self.write_line(when_empty);
        }
        let results = results
            .iter()
            .map(serde_json::to_value)
            .collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<Vec<String>> = results
            .iter()
            .map(|fields| {
                columns
                    .iter()
                    .map(|name| format_value(find_column(fields, name)))
                    .collect()
            })
            .collect();
        let header = columns.iter().map(|name| column_heading(name)).collect();
        if let Some(table) = render_table(Some(header), rows, self.width) {
            return self.write_line(&table);
        }
        let blocks: Vec<_> = results
            .iter()
            .map(|fields| {
                let shown = columns
                    .iter()
                    .map(|name| ((*name).to_owned(), find_column(fields, name).clone()));
                self.render_record(&Value::Object(shown.collect()))
            })
            .collect();
        self.write_line(&blocks.join("\n\n"))
    }

    /// A line for each field; the fields of a nested object follow under both names.
    fn render_record(&self, result: &Value) -> String {
        let mut rows = Vec::new();
        push_record_rows(&mut rows, "", result);
        // A word that is longer than the terminal is wide stays whole.
        render_table(None, rows.clone(), self.width)
            .or_else(|| render_table(None, rows, None))
            .unwrap_or_default()
    }

    /// Writes text beside a table; nothing in JSON.
    pub(crate) fn write_note(&self, text: &str) -> io::Result<()> {
        if self.is_human_readable {
            self.write_line(&replace_control_chars(text))
        } else {
            Ok(())
        }
    }

    fn write_json_line<T: Serialize>(&self, result: &T) -> io::Result<()> {
        self.write_line(&serde_json::to_string(result)?)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_text(text, ClosedPipe::Ignored)
    }

    fn write_text(&self, text: &str, closed_pipe: ClosedPipe) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match writeln!(writer, "{text}").and_then(|()| writer.flush()) {
            Err(error)
                if error.kind() == io::ErrorKind::BrokenPipe
                    && closed_pipe == ClosedPipe::Ignored =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

/// Whether stdout is a pipe that no process reads any more, as in `attesto tail … | head -1` after the first line.
pub(crate) fn is_stdout_closed() -> bool {
    let stdout = io::stdout();
    // Errors are reported without being asked for.
    let mut pipe = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut pipe, Some(&Timespec::default())).is_ok_and(|count| count > 0)
        && pipe[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Whether stdout is the null device. It is that too where the command was started with a closed stdout, as by `>&-`: Rust opens
/// the null device in its place before `main`, so that no other file gets its number.
fn is_stdout_discarded() -> bool {
    let stdout = rustix::fs::fstat(io::stdout());
    let null = rustix::fs::stat("/dev/null");
    match (stdout, null) {
        (Ok(stdout), Ok(null)) => {
            FileType::from_raw_mode(stdout.st_mode) == FileType::CharacterDevice
                && stdout.st_rdev == null.st_rdev
        }
        _ => false,
    }
}

fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col).filter(|&columns| columns > 0)
}

/// Lays out a table without borders. Cells wrap between words; `None` when that is not enough for `width`.
fn render_table(
    header: Option<Vec<String>>,
    rows: Vec<Vec<String>>,
    width: Option<u16>,
) -> Option<String> {
    /// Blanks between two columns.
    const GAP: u16 = 2;
    let columns = header.as_ref().or(rows.first()).map_or(0, Vec::len);
    let mut word_widths = vec![0_u16; columns];
    for row in header.iter().chain(&rows) {
        for (widest, cell) in word_widths.iter_mut().zip(row) {
            let word = cell.split_whitespace().map(|word| word.chars().count());
            *widest = (*widest).max(u16::try_from(word.max().unwrap_or(0)).unwrap_or(u16::MAX));
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = width {
        let gaps =
            u32::from(GAP) * u32::try_from(columns.saturating_sub(1)).unwrap_or(u32::MAX >> 8);
        let needed: u32 = word_widths.iter().copied().map(u32::from).sum::<u32>() + gaps;
        if needed > u32::from(width) {
            return None;
        }
        // The gap behind the last column is trimmed below.
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width.saturating_add(GAP));
    }
    if let Some(header) = header {
        table.set_header(header);
    }
    table.add_rows(rows);
    for (column, word) in table.column_iter_mut().zip(word_widths) {
        column.set_padding((0, GAP));
        let whole_word = Width::Fixed(word.saturating_add(GAP));
        column.set_constraint(ColumnConstraint::LowerBoundary(whole_word));
    }
    Some(table.trim_fmt())
}

fn push_record_rows(rows: &mut Vec<Vec<String>>, prefix: &str, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let heading = format!("{prefix}{}", column_heading(name));
        if value.as_object().is_some_and(|fields| !fields.is_empty()) {
            push_record_rows(rows, &format!("{heading} "), value);
        } else {
            rows.push(vec![heading, format_value(value)]);
        }
    }
}

/// The field of a column; null where it or the object around it is missing.
fn find_column<'a>(fields: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(fields, |value, field| &value[field])
}

/// `lastUsedAt` as `LAST USED AT`, `state.status` as `STATE STATUS`.
fn column_heading(name: &str) -> String {
    let mut heading = String::new();
    for letter in name.chars() {
        if letter == '.' {
            heading.push(' ');
            continue;
        }
        if letter.is_uppercase() {
            heading.push(' ');
        }
        heading.extend(letter.to_uppercase());
    }
    heading
}

/// A value as text without JSON: `a, b` for an array, `number 1, created at …` for an object.
fn format_value(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => replace_control_chars(text),
        Value::Number(number) => number.to_string(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => {
            let separator = if items.iter().any(Value::is_object) {
                "\n"
            } else {
                ", "
            };
            let items: Vec<_> = items.iter().map(format_value).collect();
            items.join(separator)
        }
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| {
                    let name = column_heading(name).to_lowercase();
                    format!("{name} {}", format_value(value))
                })
                .collect();
            fields.join(", ")
        }
    }
}

/// A stored name may hold control characters, which move a terminal's cursor. Line ends stay: our own texts have them.
fn replace_control_chars(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\n' => letter,
            _ if letter.is_control() => char::REPLACEMENT_CHARACTER,
            _ => letter,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[derive(Clone, Default)]
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn capture_output(
        is_human_readable: bool,
        write: impl Fn(&OutputWriter) -> io::Result<()>,
    ) -> String {
        let buffer = SharedBuffer::default();
        write(&OutputWriter::with_writer(
            is_human_readable,
            buffer.clone(),
        ))
        .unwrap();
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_pipe_gets_a_json_line_for_each_result() {
        let rows = [
            json!({"id": "a", "name": "x\ny"}),
            json!({"id": "b", "name": null}),
        ];
        assert_eq!(
            capture_output(false, |output| output.write_rows(&rows, &["id"], "none")),
            "{\"id\":\"a\",\"name\":\"x\\ny\"}\n{\"id\":\"b\",\"name\":null}\n"
        );
        assert_eq!(
            capture_output(false, |output| output.write_rows::<Value>(
                &[],
                &["id"],
                "none"
            )),
            ""
        );
        assert_eq!(
            capture_output(false, |output| output.write_json_or_text(&rows[1], "prose")),
            "{\"id\":\"b\",\"name\":null}\n"
        );
        assert_eq!(
            capture_output(false, |output| output.write_note("prose")),
            ""
        );
    }

    #[test]
    fn a_terminal_gets_tables_and_text() {
        let rows = [
            json!({"id": "a", "isActive": true, "lastUsedAt": null, "hidden": 1}),
            json!({"id": "b\u{1b}[2J", "isActive": false, "lastUsedAt": "2026", "hidden": 1}),
        ];
        assert_eq!(
            capture_output(true, |output| output.write_rows(
                &rows,
                &["id", "isActive", "lastUsedAt"],
                "none"
            )),
            "ID     IS ACTIVE  LAST USED AT\na      yes        -\nb\u{fffd}[2J  no         2026\n"
        );
        assert_eq!(
            capture_output(true, |output| output.write_rows::<Value>(
                &[],
                &["id"],
                "none"
            )),
            "none\n"
        );
        assert_eq!(
            capture_output(true, |output| output.write_json_or_text(&rows[0], "Done.")),
            "Done.\n"
        );
        assert!(
            capture_output(true, |output| output.write_object(&rows[0]))
                .contains("LAST USED AT  -")
        );
    }

    fn capture_table(width: u16, rows: &[Value], columns: &[&str]) -> String {
        let buffer = SharedBuffer::default();
        let output = OutputWriter {
            width: Some(width),
            ..OutputWriter::with_writer(true, buffer.clone())
        };
        output.write_rows(rows, columns, "none").unwrap();
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_table_wraps_between_words_and_never_inside_an_id() {
        let rows = [json!({"id": "evt_01J9ZQ4T5W", "what": "one two three four five", "n": 1})];
        let columns = ["id", "what", "n"];
        assert_eq!(
            capture_table(80, &rows, &columns),
            "ID              WHAT                     N\nevt_01J9ZQ4T5W  one two three four five  1\n"
        );
        let narrow = capture_table(30, &rows, &columns);
        assert!(narrow.lines().all(|line| line.len() <= 30), "{narrow}");
        assert!(narrow.contains("evt_01J9ZQ4T5W  "), "{narrow}");
        for word in ["one", "two", "three", "four", "five"] {
            assert!(narrow.contains(word), "{narrow}");
        }
        assert_eq!(
            capture_table(15, &rows, &["id", "n"]),
            "ID  evt_01J9ZQ4T5W\nN   1\n",
            "too narrow for a table: a block of lines"
        );
    }

    #[test]
    fn a_column_can_be_a_field_of_an_object() {
        let rows = [
            json!({"id": "a", "state": {"entitledUntil": "2026"}}),
            json!({"id": "b", "state": null}),
        ];
        let columns = ["id", "state.entitledUntil"];
        assert_eq!(
            capture_table(80, &rows, &columns),
            "ID  STATE ENTITLED UNTIL\na   2026\nb   -\n"
        );
        assert_eq!(
            capture_table(5, &rows, &columns),
            "ID                    a\nSTATE ENTITLED UNTIL  2026\n\nID                    b\nSTATE ENTITLED UNTIL  -\n"
        );
    }

    #[test]
    fn no_cell_holds_json() {
        let record = json!({
            "networks": ["10.0.0.0/8", "fd00::/8"],
            "secrets": [{"number": 1, "expiresAt": null}, {"number": 2, "expiresAt": "2026"}],
            "health": {"state": "ok", "lastStatus": 200},
            "none": [],
        });
        let text = capture_output(true, |output| output.write_object(&record));
        assert!(!text.contains(['{', '[', '"']), "{text}");
        for line in [
            "NETWORKS            10.0.0.0/8, fd00::/8",
            "SECRETS             number 1, expires at -",
            "                    number 2, expires at 2026",
            "HEALTH STATE        ok",
            "HEALTH LAST STATUS  200",
            "NONE                -",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} in {text}");
        }
    }
}
