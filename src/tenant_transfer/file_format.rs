//! What is in the sealed file: JSON lines. First who it is, then each table with its columns and its rows, last the count of
//! all, without which the file is not whole.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::TransferError;
use super::tables::HistoryScope;
use crate::base::id::TenantId;
use crate::crypto::sealed_file::SealedFileError;

/// The shape of the lines that this release writes and reads.
pub const EXPORT_FORMAT: u32 = 1;
/// No line is longer: an event is of at most a megabyte, and is in its row three times.
const MAX_LINE_BYTES: u64 = 64 * 1024 * 1024;

/// The first line: whose it is, and of when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportHeader {
    /// [`EXPORT_FORMAT`].
    pub format: u32,
    /// The exported tenant.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// Whether it was active.
    #[serde(rename = "wasActive")]
    pub is_active: bool,
    /// The moment whose state it is, as RFC 3339.
    pub exported_at: String,
    /// The release of Attesto that made it.
    pub attesto: String,
    /// The newest migration of the database it is from.
    pub schema_version: i64,
    /// How much of what was received.
    pub history: HistoryScope,
}

/// What a secret says, between two installations.
#[derive(Serialize, Deserialize)]
pub(super) struct EncodedSecret(String);

impl EncodedSecret {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self(STANDARD.encode(bytes))
    }

    pub(super) fn decode_bytes(&self) -> Result<Zeroizing<Vec<u8>>, TransferError> {
        let bytes = STANDARD.decode(&self.0);
        bytes
            .map(Zeroizing::new)
            .map_err(|_| TransferError::InvalidContent("a secret is not base64".to_owned()))
    }
}

impl Drop for EncodedSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// One line of the file's content.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ExportLine {
    Label(ExportHeader),
    Table {
        name: String,
        columns: Vec<String>,
    },
    /// A row of the table that was named last, as Postgres writes it; beside it what stood sealed in its one sealed column.
    Row {
        fields: Box<RawValue>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        secret: Option<EncodedSecret>,
    },
    End {
        rows: BTreeMap<String, u64>,
    },
}

impl ExportLine {
    pub(super) fn write_to(&self, into: &mut impl Write) -> std::io::Result<()> {
        let mut line = Zeroizing::new(serde_json::to_vec(self)?);
        line.push(b'\n');
        into.write_all(&line)
    }

    /// The next one, with how long it was. `None` at the end.
    pub(super) fn read_from(
        from: &mut impl BufRead,
    ) -> Result<Option<(Self, usize)>, TransferError> {
        let mut line = Zeroizing::new(Vec::new());
        let mut limited = std::io::Read::take(&mut *from, MAX_LINE_BYTES);
        let length = limited
            .read_until(b'\n', &mut line)
            .map_err(SealedFileError::from)?;
        if length == 0 {
            return Ok(None);
        }
        let parsed = serde_json::from_slice(&line);
        // What is wrong is told without what is there, which may be a secret.
        let parsed = parsed.map_err(|error| {
            TransferError::InvalidContent(format!(
                "a line is none of this release's ({:?} at column {})",
                error.classify(),
                error.column()
            ))
        })?;
        Ok(Some((parsed, length)))
    }
}
