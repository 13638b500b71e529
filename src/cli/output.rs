//! Results on stdout: one JSON object a line, or, when a person is watching, tables and prose.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Tables and prose on a terminal, JSON lines anywhere else.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Tables and prose.
    Table,
}

/// Where results go.
pub struct Output {
    for_people: bool,
    /// Whether JSON was asked for, and not only taken for granted because nobody watches.
    json_asked_for: bool,
    writer: Mutex<Box<dyn Write + Send>>,
}

impl Output {
    /// Standard output.
    pub fn stdout(format: Format) -> Self {
        let for_people = match format {
            Format::Auto => io::stdout().is_terminal(),
            Format::Json => false,
            Format::Table => true,
        };
        Self {
            json_asked_for: format == Format::Json,
            ..Self::to(for_people, io::stdout())
        }
    }

    /// Any writer.
    pub fn to(for_people: bool, writer: impl Write + Send + 'static) -> Self {
        Self {
            for_people,
            json_asked_for: false,
            writer: Mutex::new(Box::new(writer)),
        }
    }

    /// Whether tables and prose are wanted rather than JSON.
    pub fn is_for_people(&self) -> bool {
        self.for_people
    }

    /// One result: a JSON line, or its fields under each other.
    pub fn object<T: Serialize>(&self, result: &T) -> io::Result<()> {
        if !self.for_people {
            return self.json(result);
        }
        let mut table = plain_table();
        if let Value::Object(fields) = serde_json::to_value(result)? {
            for (name, value) in &fields {
                table.add_row([heading(name), cell(value)]);
            }
        }
        self.line(&aligned(table))
    }

    /// One result: a JSON line, or a sentence or two that say it.
    pub fn sentence<T: Serialize>(&self, result: &T, prose: &str) -> io::Result<()> {
        if self.for_people {
            self.line(&printable(prose))
        } else {
            self.json(result)
        }
    }

    /// One result that is the content of a file: that text as it is, also when it is piped into one; a JSON line only when
    /// JSON was asked for.
    pub fn content<T: Serialize>(&self, result: &T, text: &str) -> io::Result<()> {
        if self.json_asked_for {
            self.json(result)
        } else {
            self.line(text)
        }
    }

    /// A line on the way to a result: a JSON line; nothing for a person, who is shown it otherwise.
    pub fn step<T: Serialize>(&self, step: &T) -> io::Result<()> {
        if self.for_people {
            Ok(())
        } else {
            self.json(step)
        }
    }

    /// Several results: a JSON line each, or a table of the named fields; `when_empty` is told to a person when there
    /// are none.
    pub fn rows<T: Serialize>(
        &self,
        results: &[T],
        columns: &[&str],
        when_empty: &str,
    ) -> io::Result<()> {
        if !self.for_people {
            return results.iter().try_for_each(|result| self.json(result));
        }
        if results.is_empty() {
            return self.line(when_empty);
        }
        let mut table = plain_table();
        table.set_header(columns.iter().map(|name| heading(name)));
        for result in results {
            let fields = serde_json::to_value(result)?;
            table.add_row(columns.iter().map(|name| cell(&fields[*name])));
        }
        self.line(&aligned(table))
    }

    /// A line of prose that only a person gets; nothing in JSON.
    pub fn remark(&self, prose: &str) -> io::Result<()> {
        if self.for_people {
            self.line(&printable(prose))
        } else {
            Ok(())
        }
    }

    fn json<T: Serialize>(&self, result: &T) -> io::Result<()> {
        self.line(&serde_json::to_string(result)?)
    }

    fn line(&self, text: &str) -> io::Result<()> {
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

fn aligned(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// `lastUsedAt` as `LAST USED AT`.
fn heading(name: &str) -> String {
    let mut heading = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() {
            heading.push(' ');
        }
        heading.extend(letter.to_uppercase());
    }
    heading
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// A stored name may hold what moves a terminal's cursor; a line end is kept only in our own prose.
fn printable(text: &str) -> String {
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
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(for_people: bool, write: impl Fn(&Output) -> io::Result<()>) -> String {
        let page = Page::default();
        write(&Output::to(for_people, page.clone())).unwrap();
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_program_gets_a_json_line_each() {
        let rows = [
            json!({"id": "a", "name": "x\ny"}),
            json!({"id": "b", "name": null}),
        ];
        assert_eq!(
            written(false, |output| output.rows(&rows, &["id"], "none")),
            "{\"id\":\"a\",\"name\":\"x\\ny\"}\n{\"id\":\"b\",\"name\":null}\n"
        );
        assert_eq!(
            written(false, |output| output.rows::<Value>(&[], &["id"], "none")),
            ""
        );
        assert_eq!(
            written(false, |output| output.sentence(&rows[1], "prose")),
            "{\"id\":\"b\",\"name\":null}\n"
        );
        assert_eq!(written(false, |output| output.remark("prose")), "");
    }

    #[test]
    fn a_person_gets_tables_and_prose() {
        let rows = [
            json!({"id": "a", "isActive": true, "lastUsedAt": null, "hidden": 1}),
            json!({"id": "b\u{1b}[2J", "isActive": false, "lastUsedAt": "2026", "hidden": 1}),
        ];
        assert_eq!(
            written(true, |output| output.rows(
                &rows,
                &["id", "isActive", "lastUsedAt"],
                "none"
            )),
            "ID     IS ACTIVE  LAST USED AT\na      yes        -\nb\u{fffd}[2J  no         2026\n"
        );
        assert_eq!(
            written(true, |output| output.rows::<Value>(&[], &["id"], "none")),
            "none\n"
        );
        assert_eq!(
            written(true, |output| output.sentence(&rows[0], "Done.")),
            "Done.\n"
        );
        assert!(written(true, |output| output.object(&rows[0])).contains("LAST USED AT  -"));
    }
}
