//! The file of answers: JSON lines in the order in which the stores answered. What stands in it is not asked again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Deserialize;

use super::rows::BatchRow;

/// How each line begins.
const LINE_BEGIN: &str = "{\"line\":";

/// An answer file that is open for appending.
pub(super) struct AnswerFile {
    file: File,
    /// The hashes of the answered rows by line.
    answered: HashMap<u64, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnsweredRow {
    line: u64,
    input_hash: String,
}

/// The answer of this line is one to another row.
#[derive(Debug)]
pub(super) struct OtherInput;

impl AnswerFile {
    /// Opens it, or creates it readable for its owner only. A last line that was cut off is removed: its row is asked again.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let mut answered = HashMap::new();
        let mut reader = BufReader::new(&file);
        let mut whole = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            let other_file = || {
                let text = "it is not a file of answers of this command";
                io::Error::new(io::ErrorKind::InvalidData, text)
            };
            if !line.ends_with(b"\n") {
                let begin = LINE_BEGIN.as_bytes();
                let is_answer = line.starts_with(begin) || begin.starts_with(&line);
                if !is_answer {
                    return Err(other_file());
                }
                break;
            }
            whole += length as u64;
            let row: AnsweredRow = serde_json::from_slice(&line).map_err(|_| other_file())?;
            answered.insert(row.line, row.input_hash);
        }
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, answered })
    }

    pub(super) fn has_answer(&self, row: &BatchRow) -> Result<bool, OtherInput> {
        match self.answered.get(&row.line) {
            None => Ok(false),
            Some(hash) if *hash == row.input_hash => Ok(true),
            Some(_) => Err(OtherInput),
        }
    }

    /// Appends a line.
    pub(super) fn append(&mut self, answer: &serde_json::Value) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}
