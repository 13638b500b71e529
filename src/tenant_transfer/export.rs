//! Exports a tenant to a file.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::BufWriter;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::error::TransferError;
use super::file_format::{EXPORT_FORMAT, EncodedSecret, ExportHeader, ExportLine};
use super::store::{self, EncodedColumn, ExportedTenant, TenantSnapshot};
use super::tables::{HistoryScope, TRANSFERRED_TABLES};
use crate::backup::manifest::hash_file;
use crate::backup::partial_file::PartialFile as Unfinished;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::progress::ReportProgress;
use crate::credentials::sealed_columns::SealedColumn;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::Keyring;
use crate::crypto::sealed_file::{SealTarget, SealedFileWriter};
use crate::db::{Database, Error};
use crate::deliveries::body::{BodyStore, EncodedBody};

/// How often progress is reported within a table.
const ROWS_PER_REPORT: u64 = 1000;

/// The result of an export.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportReport {
    /// The first line of the file.
    #[serde(flatten)]
    pub label: ExportHeader,
    /// The number of exported rows, by table.
    pub rows: BTreeMap<String, u64>,
    /// How many of the exported deliveries are pending.
    pub waiting: i64,
    /// What the file is sealed with: the recipient, or "a passphrase".
    pub sealed_for: String,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// Exports the tenant to `file`, which must not exist and is readable only by its owner. `keyring` unseals the stored
/// values; the caller must check first that its keys are those of this database. Other processes can use the database
/// meanwhile.
pub async fn export_tenant(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    history: HistoryScope,
    to: &SealTarget,
    file: &Path,
    report: ReportProgress<'_>,
) -> Result<ExportReport, TransferError> {
    if file.exists() {
        return Err(TransferError::FileExists(file.to_owned()));
    }
    let mut snapshot = TenantSnapshot::begin_snapshot(database, tenant).await?;
    let owner = snapshot.load_tenant(tenant).await?;
    let owner = owner.ok_or_else(|| TransferError::TenantNotFound(tenant.clone()))?;
    check_deliveries(&owner, tenant, history)?;
    let label = ExportHeader {
        format: EXPORT_FORMAT,
        tenant: tenant.clone(),
        name: owner.name,
        is_active: owner.is_active,
        exported_at: Timestamp::from(snapshot.taken_at).to_string(),
        attesto: crate::VERSION.to_owned(),
        schema_version: snapshot.schema_version,
        history,
    };
    let failed = |cause| TransferError::FileIo {
        path: file.to_owned(),
        cause,
    };
    let unfinished = Unfinished::create_for(file).map_err(failed)?;
    let writer = OpenOptions::new().append(true).open(unfinished.path());
    let writer = BufWriter::new(writer.map_err(failed)?);
    let mut sealer = SealedFileWriter::new(writer, to).map_err(failed)?;

    ExportLine::Label(label.clone())
        .write_to(&mut sealer)
        .map_err(failed)?;
    let bodies = BodyStore::new(database);
    bodies.load_all_dictionaries().await?;
    let mut rows = BTreeMap::new();
    let table_count = TRANSFERRED_TABLES.len() as u64;
    for (part, finished) in TRANSFERRED_TABLES.iter().zip(0..) {
        report(finished, table_count, part.name);
        let columns = snapshot.list_columns(part.name).await?;
        let heading = ExportLine::Table {
            name: part.name.to_owned(),
            columns: columns.clone(),
        };
        heading.write_to(&mut sealer).map_err(failed)?;
        let encoded_column = store::encoded_column(part.name);
        let mut count = 0;
        let each = |fields: Box<RawValue>, encoded: Option<Vec<u8>>| {
            let (secret, body) = match encoded_column.zip(encoded) {
                None => (None, None),
                Some((EncodedColumn::Body, stored)) => {
                    (None, Some(decode_body(&bodies, &fields, stored)?))
                }
                Some((EncodedColumn::Sealed(column), blob)) => {
                    (Some(unseal_secret(keyring, tenant, column, &blob)?), None)
                }
            };
            count += 1;
            if count % ROWS_PER_REPORT == 0 {
                let what = format!("{}, {count} rows", part.name);
                report(finished, table_count, &what);
            }
            let line = ExportLine::Row {
                fields,
                secret,
                body,
            };
            line.write_to(&mut sealer).map_err(failed)
        };
        snapshot
            .for_each_row(part, history, tenant, &columns, each)
            .await?;
        rows.insert(part.name.to_owned(), count);
    }
    snapshot.end_snapshot().await?;
    ExportLine::End { rows: rows.clone() }
        .write_to(&mut sealer)
        .map_err(failed)?;
    let flushed = sealer.finish_file().map_err(failed)?.into_inner();
    drop(flushed.map_err(|error| failed(error.into_error()))?);

    let (bytes, sha256) = hash_file(unfinished.path()).map_err(failed)?;
    let exported = ExportReport {
        label,
        rows,
        waiting: owner.pending_deliveries,
        sealed_for: to.to_string(),
        bytes,
        sha256,
    };
    // The audit row is written before the file gets its name, so that every file has an audit row.
    let note = json!({
        "history": history,
        "sealedFor": exported.sealed_for,
        "rows": exported.rows,
        "sha256": exported.sha256,
    });
    store::record_export(database, tenant, &note).await?;
    unfinished.persist_as(file).map_err(failed)?;
    Ok(exported)
}

/// The export of an active tenant is a copy, which misses later events. The export of an inactive tenant is complete, so no process
/// may still be sending its deliveries.
fn check_deliveries(
    owner: &ExportedTenant,
    tenant: &TenantId,
    history: HistoryScope,
) -> Result<(), TransferError> {
    if !owner.is_active && owner.deliveries_in_progress > 0 {
        return Err(TransferError::DeliveriesInProgress {
            tenant: tenant.clone(),
            count: owner.deliveries_in_progress,
        });
    }
    if owner.has_open_redelivery && history == HistoryScope::Needed {
        return Err(TransferError::RedeliveryInProgress(tenant.clone()));
    }
    Ok(())
}

fn unseal_secret(
    keyring: &Keyring,
    tenant: &TenantId,
    column: SealedColumn,
    blob: &[u8],
) -> Result<EncodedSecret, TransferError> {
    let opened = keyring.open(column.context_for(tenant.as_str()), blob);
    let opened = opened.map_err(|cause| TransferError::SecretNotOpened {
        column: format!("{}.{}", column.table, column.column),
        tenant: tenant.clone(),
        cause,
    })?;
    Ok(EncodedSecret::from_bytes(opened.expose_secret()))
}

/// The text of a stored body. `fields` are the other columns of its row.
fn decode_body(
    bodies: &BodyStore,
    fields: &RawValue,
    stored: Vec<u8>,
) -> Result<String, TransferError> {
    #[derive(Deserialize)]
    struct EventFields {
        id: String,
        sequence: Option<i64>,
    }
    let fields: EventFields =
        serde_json::from_str(fields.get()).map_err(|error| Error::Decode(error.into()))?;
    let body = EncodedBody {
        sequence: fields.sequence,
        stored,
    };
    let text = bodies.decode(&body);
    text.map_err(|cause| TransferError::BodyUnreadable {
        event: fields.id,
        cause,
    })
}
