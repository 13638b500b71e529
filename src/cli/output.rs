//! Results on stdout: one JSON object a line, or, when a person is watching, tables and prose.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Tables and prose on a terminal, JSON lines anywhere else.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Tables and prose.
    Table,
}

/// Where results go.
pub(crate) struct OutputWriter {
    is_human_readable: bool,
    /// Whether JSON was asked for, and not only taken for granted because nobody watches.
    is_json_requested: bool,
    writer: Mutex<Box<dyn Write + Send>>,
}

impl OutputWriter {
    /// Standard output.
    pub(crate) fn for_stdout(format: OutputFormat) -> Self {
        let for_people = match format {
            OutputFormat::Auto => io::stdout().is_terminal(),
            OutputFormat::Json => false,
            OutputFormat::Table => true,
        };
        Self {
            is_json_requested: format == OutputFormat::Json,
            ..Self::with_writer(for_people, io::stdout())
        }
    }

    /// Any writer.
    pub(crate) fn with_writer(
        is_human_readable: bool,
        writer: impl Write + Send + 'static,
    ) -> Self {
        Self {
            is_human_readable,
            is_json_requested: false,
            writer: Mutex::new(Box::new(writer)),
        }
    }

    /// Whether tables and prose are wanted rather than JSON.
    pub(crate) fn is_human_readable(&self) -> bool {
        self.is_human_readable
    }

    /// One result: a JSON line, or its fields under each other.
    pub(crate) fn write_object<T: Serialize>(&self, result: &T) -> io::Result<()> {
        if !self.is_human_readable {
            return self.write_json_line(result);
        }
        let mut table = plain_table();
        if let Value::Object(fields) = serde_json::to_value(result)? {
            for (name, value) in &fields {
                table.add_row([column_heading(name), format_cell(value)]);
            }
        }
        self.write_line(&render_aligned(table))
    }

    /// One result: a JSON line, or a sentence or two that say it.
    pub(crate) fn write_json_or_text<T: Serialize>(
        &self,
        result: &T,
        prose: &str,
    ) -> io::Result<()> {
        if self.is_human_readable {
            self.write_line(&replace_control_chars(prose))
        } else {
            self.write_json_line(result)
        }
    }

    /// One result that is the content of a file: that text as it is, also when it is piped into one; a JSON line only when
    /// JSON was asked for.
    pub(crate) fn write_raw_text<T: Serialize>(&self, result: &T, text: &str) -> io::Result<()> {
        if self.is_json_requested {
            self.write_json_line(result)
        } else {
            self.write_line(text)
        }
    }

    /// A line on the way to a result: a JSON line; nothing for a person, who is shown it otherwise.
    pub(crate) fn write_progress_json<T: Serialize>(&self, step: &T) -> io::Result<()> {
        if self.is_human_readable {
            Ok(())
        } else {
            self.write_json_line(step)
        }
    }

    /// Several results: a JSON line each, or a table of the named fields; `when_empty` is told to a person when there
    /// are none.
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
        let mut table = plain_table();
        table.set_header(columns.iter().map(|name| column_heading(name)));
        for result in results {
            let fields = serde_json::to_value(result)?;
            table.add_row(columns.iter().map(|name| format_cell(&fields[*name])));
        }
        self.write_line(&render_aligned(table))
    }

    /// A line of prose that only a person gets; nothing in JSON.
    pub(crate) fn write_note(&self, prose: &str) -> io::Result<()> {
        if self.is_human_readable {
            self.write_line(&replace_control_chars(prose))
        } else {
            Ok(())
        }
    }

    fn write_json_line<T: Serialize>(&self, result: &T) -> io::Result<()> {
        self.write_line(&serde_json::to_string(result)?)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match writeln!(writer, "{text}").and_then(|()| writer.flush()) {
            // `attesto key list … | head -1`: whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn render_aligned(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// `lastUsedAt` as `LAST USED AT`.
fn column_heading(name: &str) -> String {
    let mut heading = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() {
            heading.push(' ');
        }
        heading.extend(letter.to_uppercase());
    }
    heading
}

fn format_cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => replace_control_chars(text),
        other => other.to_string(),
    }
}

/// A stored name may hold what moves a terminal's cursor; a line end is kept only in our own prose.
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

    fn capture_output(for_people: bool, write: impl Fn(&OutputWriter) -> io::Result<()>) -> String {
        let page = SharedBuffer::default();
        write(&OutputWriter::with_writer(for_people, page.clone())).unwrap();
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_program_gets_a_json_line_each() {
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
    fn a_person_gets_tables_and_prose() {
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
}
