//! Reads a secret from a file, or from stdin when the path is `-`, so that neither the process list nor the shell's
//! history shows it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::context::CommandError;
use crate::base::error::to_sentence;
use crate::crypto::redact;

/// No key file or body is larger.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

/// The whole content of `path`, or of stdin when `path` is `-`. Exit 1 when it cannot be read, 2 when it is larger than
/// [`MAX_INPUT_BYTES`].
pub(crate) fn read_file_or_stdin(path: &Path) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let name = redact::redact_path(path);
    let mut content = Zeroizing::new(Vec::new());
    let read = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(MAX_INPUT_BYTES + 1)
            .read_to_end(&mut content)
    } else {
        File::open(path).and_then(|file| file.take(MAX_INPUT_BYTES + 1).read_to_end(&mut content))
    };
    read.map_err(|error| {
        CommandError::failed(to_sentence(format!("cannot read {name}: {error}")))
    })?;
    if content.len() as u64 > MAX_INPUT_BYTES {
        return Err(CommandError::usage_error(format!(
            "{name} is larger than {MAX_INPUT_BYTES} bytes."
        )));
    }
    Ok(content)
}

/// [`read_file_or_stdin`] as text; exit 2 when it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<Zeroizing<String>, CommandError> {
    let bytes = read_file_or_stdin(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        CommandError::usage_error(format!("{} is not text.", redact::redact_path(path)))
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}
