//! The content of the sealed file, as JSON lines: first a header, then each table with its columns and rows, and last
//! the number of rows of every table. A file without the last line is incomplete.

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

/// The version of the format that this release writes and reads.
pub const EXPORT_FORMAT: u32 = 1;
/// The maximum length of a line. An event is at most 1 MB, and its row has it three times.
const MAX_LINE_BYTES: u64 = 64 * 1024 * 1024;

/// The first line of the file: which tenant was exported, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportHeader {
    /// The version of the format: [`EXPORT_FORMAT`].
    pub format: u32,
    /// The exported tenant.
    pub tenant: TenantId,
    /// The tenant's name.
    pub name: String,
    /// Whether the tenant was active.
    #[serde(rename = "wasActive")]
    pub is_active: bool,
    /// When the snapshot was taken, in RFC 3339.
    pub exported_at: String,
    /// The release of Attesto that wrote the file.
    pub attesto: String,
    /// The number of the newest migration of the exported database.
    pub schema_version: i64,
    /// Which events and deliveries were exported.
    pub history: HistoryScope,
}

/// The plaintext of a sealed value, in base64.
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
    /// A row of the last table line, as Postgres encodes it in JSON. `secret` is the unsealed value of the table's
    /// sealed column, `body` the text of a stored body.
    Row {
        fields: Box<RawValue>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        secret: Option<EncodedSecret>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        body: Option<String>,
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

    /// Reads the next line and returns it with its length in bytes. `None` at the end of the file.
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
        // The message does not repeat the line, which may contain a secret.
        let parsed = parsed.map_err(|error| {
            TransferError::InvalidContent(format!(
                "a line has a form that this release does not know ({:?} at column {})",
                error.classify(),
                error.column()
            ))
        })?;
        Ok(Some((parsed, length)))
    }
}
