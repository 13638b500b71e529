//! Imports a tenant from a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::error::TransferError;
use super::file_format::{EXPORT_FORMAT, ExportHeader, ExportLine};
use super::store::{self, EncodedColumn, ExistingEvent, NETWORKS_TABLE, RowBatch, TenantImport};
use super::tables::{ConflictPolicy, TRANSFERRED_TABLES, TransferTable};
use crate::backup::manifest::hash_file;
use crate::crypto::keyring::Keyring;
use crate::crypto::sealed_file::{OpeningSecret, SealedFileReader};
use crate::db::Database;
use crate::deliveries::body::{BodyDictionary, BodyParts, encode_body};

/// The maximum number of rows in one insert.
const MAX_BATCH_ROWS: usize = 200;
/// The number of bytes of the file after which the collected rows are inserted.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The flags of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent flag of the command"
)]
pub struct ImportOptions {
    /// Make the tenant inactive, whatever the file says.
    pub as_inactive: bool,
    /// Import over the same tenant if it exists.
    pub replace: bool,
    /// Also import the private networks that the callback was allowed to reach. They describe the surroundings of the
    /// exporting installation.
    pub with_networks: bool,
    /// Run the whole import and roll it back.
    pub dry_run: bool,
}

/// The result of an import.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent fact about the import"
)]
pub struct ImportReport {
    /// The first line of the file.
    #[serde(flatten)]
    pub label: ExportHeader,
    /// The number of rows written, by table.
    pub rows: BTreeMap<String, u64>,
    /// The number of rows that existed already, by table.
    pub kept: BTreeMap<String, u64>,
    /// Events that exist here with another id, because their store reported them to this installation too.
    pub known: u64,
    /// Deliveries that were left out, because their event exists here with another id and has deliveries of its own.
    pub superseded: u64,
    /// Pending deliveries that were marked as failed, because the file does not have their callback.
    pub abandoned: u64,
    /// The allowed networks in the file, as `network:port`.
    pub networks: Vec<String>,
    /// Whether those networks were imported.
    pub networks_opened: bool,
    /// The tenant's pending deliveries after the import.
    pub waiting: i64,
    /// Whether the tenant is active after the import.
    pub active: bool,
    /// Whether the tenant existed before the import.
    pub replaced: bool,
    /// Whether the import was rolled back because it was a dry run.
    pub dry_run: bool,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// Reads `file` and writes the tenant in one transaction. `keyring` seals its secrets; the caller must check first that
/// its keys are those of this database.
pub async fn import_tenant(
    database: &Database,
    keyring: &Keyring,
    file: &Path,
    with: &OpeningSecret,
    options: ImportOptions,
) -> Result<ImportReport, TransferError> {
    let failed = |cause| TransferError::FileIo {
        path: file.to_owned(),
        cause,
    };
    let (_, sha256) = hash_file(file).map_err(failed)?;
    let opener = SealedFileReader::new(File::open(file).map_err(failed)?, with)?;
    let mut reader = BufReader::new(opener);
    let Some((ExportLine::Label(label), _)) = ExportLine::read_from(&mut reader)? else {
        return Err(TransferError::InvalidContent(
            "it does not say which tenant it has".into(),
        ));
    };
    if label.format != EXPORT_FORMAT {
        return Err(TransferError::NewerRelease {
            attesto: label.attesto,
        });
    }
    let mut unpacking = TenantImport::begin_import(database, &label.tenant).await?;
    if label.schema_version > unpacking.schema_version {
        return Err(TransferError::NewerRelease {
            attesto: label.attesto,
        });
    }
    let replaced = unpacking.tenant_exists().await?;
    if replaced && !options.replace {
        return Err(TransferError::TenantExists(label.tenant));
    }
    if replaced {
        unpacking
            .delete_replaced_rows(options.with_networks)
            .await?;
    }
    let mut unpacked = ImportReader {
        keyring,
        label: &label,
        with_networks: options.with_networks,
        replaced,
        deferred_tenant_row: None,
        existing_events: HashMap::new(),
        superseded: 0,
        networks: Vec::new(),
        rows: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    unpacked.import_lines(&mut unpacking, &mut reader).await?;
    // The tenant's row is updated last, because other processes read it when they store an event and would wait for its
    // lock.
    if let Some(mut last) = unpacked.deferred_tenant_row.take() {
        unpacked.insert_batch(&mut unpacking, &mut last).await?;
    }
    unpacking.list_unresolved_states().await?;
    let abandoned = unpacking.abandon_orphaned_deliveries().await?;
    let ImportReader {
        rows,
        kept,
        existing_events,
        superseded,
        networks,
        ..
    } = unpacked;
    let active = unpacking.set_and_load_active(options.as_inactive).await?;
    let active =
        active.ok_or_else(|| TransferError::InvalidContent("its tenant is missing".into()))?;
    unpacking.check_deferred_constraints().await?;
    let waiting = unpacking.count_pending_deliveries().await?;
    let note = json!({
        "exportedAt": label.exported_at,
        "history": label.history,
        "replaced": replaced,
        "rows": rows,
        "kept": kept,
        "superseded": superseded,
        "abandoned": abandoned,
        "sha256": sha256,
    });
    unpacking.record_import(&note).await?;
    if !options.dry_run {
        unpacking.commit().await?;
    }
    Ok(ImportReport {
        active,
        label,
        rows,
        kept,
        known: existing_events.len() as u64,
        superseded,
        abandoned,
        networks_opened: options.with_networks && !networks.is_empty(),
        networks,
        waiting,
        replaced,
        dry_run: options.dry_run,
        sha256,
    })
}

struct ImportReader<'a> {
    keyring: &'a Keyring,
    label: &'a ExportHeader,
    with_networks: bool,
    replaced: bool,
    /// The row of table `tenants`, if the tenant exists already: it is written last.
    deferred_tenant_row: Option<TableBatch>,
    existing_events: HashMap<String, ExistingEvent>,
    superseded: u64,
    networks: Vec<String>,
    rows: BTreeMap<String, u64>,
    kept: BTreeMap<String, u64>,
}

/// A row of table `webhook_allowed_networks`.
#[derive(Deserialize)]
struct NetworkRow {
    network: String,
    port: u16,
}

impl NetworkRow {
    /// The network as `network:port`. `None` if it has characters that no network has, so that nothing else is ever
    /// shown.
    fn parse_network(fields: &str) -> Option<String> {
        let it: Self = serde_json::from_str(fields).ok()?;
        let is_plain =
            |letter: char| letter.is_ascii_hexdigit() || matches!(letter, '.' | ':' | '/');
        it.network
            .chars()
            .all(is_plain)
            .then(|| format!("{}:{}", it.network, it.port))
    }
}

/// The table that is being read, and its rows that are not written yet.
struct TableBatch {
    table: &'static TransferTable,
    columns: Vec<String>,
    batch: RowBatch,
    bytes: usize,
}

impl TableBatch {
    fn new(table: &'static TransferTable, columns: Vec<String>) -> Self {
        Self {
            table,
            columns,
            batch: RowBatch::default(),
            bytes: 0,
        }
    }
}

impl ImportReader<'_> {
    /// Reads every line after the first. The last line must have the number of rows of every table.
    async fn import_lines(
        &mut self,
        unpacking: &mut TenantImport,
        reader: &mut impl BufRead,
    ) -> Result<(), TransferError> {
        let mut open: Option<TableBatch> = None;
        let mut read: BTreeMap<String, u64> = BTreeMap::new();
        let mut tables = TRANSFERRED_TABLES.iter();
        loop {
            let Some((line, length)) = ExportLine::read_from(reader)? else {
                return Err(TransferError::InvalidContent("its end is missing".into()));
            };
            match line {
                ExportLine::Label(_) => {
                    return Err(TransferError::InvalidContent(
                        "it has a second header".into(),
                    ));
                }
                ExportLine::Table { name, columns } => {
                    self.write_batch(unpacking, open.as_mut()).await?;
                    // The tables must be in the order of the list, which is that of their references. A file of an
                    // older release has fewer.
                    let part = tables.find(|part| part.name == name);
                    let part = part.ok_or_else(|| {
                        TransferError::InvalidContent(format!(
                            "it has no place for a table called {name}"
                        ))
                    })?;
                    let known = unpacking.list_columns(part.name).await?;
                    if columns.is_empty() || columns.iter().any(|name| !known.contains(name)) {
                        return Err(TransferError::NewerRelease {
                            attesto: self.label.attesto.clone(),
                        });
                    }
                    unpacking.set_row_audit(!part.is_audited_once).await?;
                    read.insert(name, 0);
                    open = Some(TableBatch::new(part, columns));
                }
                ExportLine::Row {
                    fields,
                    secret,
                    body,
                } => {
                    let Some(open) = open.as_mut() else {
                        return Err(TransferError::InvalidContent(
                            "a row precedes the first table".into(),
                        ));
                    };
                    let encoded = match store::encoded_column(open.table.name) {
                        None => None,
                        Some(EncodedColumn::Sealed(column)) => secret
                            .map(|secret| {
                                let place = column.context_for(self.label.tenant.as_str());
                                Ok::<_, TransferError>(
                                    self.keyring.seal(place, &secret.decode_bytes()?),
                                )
                            })
                            .transpose()?,
                        Some(EncodedColumn::Body) => body.map(|text| {
                            encode_body(BodyParts::Whole(&text), BodyDictionary::built_in())
                        }),
                    };
                    *read.entry(open.table.name.to_owned()).or_default() += 1;
                    let fields = Box::<str>::from(fields).into();
                    let Some(fields) = self.map_row(open.table, fields)? else {
                        continue;
                    };
                    open.batch.rows.push(fields);
                    open.batch.encoded.push(encoded);
                    open.bytes += length;
                    if open.batch.rows.len() >= MAX_BATCH_ROWS || open.bytes >= MAX_BATCH_BYTES {
                        self.write_batch(unpacking, Some(open)).await?;
                    }
                }
                ExportLine::End { rows } => {
                    self.write_batch(unpacking, open.as_mut()).await?;
                    if rows != read || reader.fill_buf().is_ok_and(|rest| !rest.is_empty()) {
                        return Err(TransferError::InvalidContent(
                            "the numbers of rows in its last line differ from its rows".into(),
                        ));
                    }
                    // The sealed file is only known to be complete when its end was read.
                    return match ExportLine::read_from(reader)? {
                        None => Ok(()),
                        Some(_) => Err(TransferError::InvalidContent(
                            "it has lines after its last line".into(),
                        )),
                    };
                }
            }
        }
    }

    async fn write_batch(
        &mut self,
        unpacking: &mut TenantImport,
        open: Option<&mut TableBatch>,
    ) -> Result<(), TransferError> {
        let Some(open) = open else { return Ok(()) };
        if !self.replaced || open.table.on_conflict != ConflictPolicy::Overwrite {
            return self.insert_batch(unpacking, open).await;
        }
        let columns = open.columns.clone();
        let next = TableBatch::new(open.table, columns);
        let given = std::mem::replace(open, next);
        if given.batch.rows.is_empty() {
            return Ok(());
        }
        match self.deferred_tenant_row.replace(given) {
            None => Ok(()),
            Some(_) => Err(TransferError::InvalidContent("it has two tenants".into())),
        }
    }

    /// The row to write, or `None` for a row to leave out: a network unless networks are to be imported, or a delivery
    /// whose event exists here with deliveries of its own. A delivery of an event that has another id here gets that
    /// id.
    fn map_row(
        &mut self,
        part: &TransferTable,
        fields: String,
    ) -> Result<Option<String>, TransferError> {
        let invalid_row = || {
            TransferError::InvalidContent(format!("a row of {} has an unexpected form", part.name))
        };
        if part.name == NETWORKS_TABLE {
            self.networks
                .push(NetworkRow::parse_network(&fields).ok_or_else(invalid_row)?);
            return Ok(self.with_networks.then_some(fields));
        }
        if part.name != "webhook_deliveries" || self.existing_events.is_empty() {
            return Ok(Some(fields));
        }
        let mut row: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&fields).map_err(|_| invalid_row())?;
        let event = row.get("event_id").and_then(serde_json::Value::as_str);
        match event.and_then(|event| self.existing_events.get(event)) {
            None => Ok(Some(fields)),
            Some(existing) if existing.has_deliveries => {
                self.superseded += 1;
                Ok(None)
            }
            Some(existing) => {
                row.insert("event_id".to_owned(), existing.event_id.clone().into());
                let row = serde_json::Value::Object(row);
                Ok(Some(row.to_string()))
            }
        }
    }

    async fn insert_batch(
        &mut self,
        unpacking: &mut TenantImport,
        open: &mut TableBatch,
    ) -> Result<(), TransferError> {
        let given = open.batch.rows.len() as u64;
        let (part, batch) = (open.table, &open.batch);
        let table = part.name;
        let mut inserted = 0;
        if given > 0 {
            let written = unpacking.insert_rows(part, &open.columns, batch, self.replaced);
            inserted = written.await?;
        }
        if inserted < given {
            match part.on_conflict {
                // Another transaction created the tenant meanwhile.
                ConflictPolicy::Overwrite => {
                    return Err(TransferError::TenantExists(self.label.tenant.clone()));
                }
                ConflictPolicy::DeleteFirst => {}
                ConflictPolicy::KeepExisting => {
                    let rows_of_others =
                        given - unpacking.count_existing_rows(part, batch).await?.min(given);
                    if rows_of_others > 0 {
                        return Err(TransferError::RowsOfOtherTenant {
                            tenant: self.label.tenant.clone(),
                            table,
                            count: rows_of_others,
                        });
                    }
                }
            }
            if table == "webhook_events" {
                self.existing_events
                    .extend(unpacking.find_existing_events(batch).await?);
            }
        }
        open.batch = RowBatch::default();
        open.bytes = 0;
        *self.rows.entry(table.to_owned()).or_default() += inserted;
        if inserted < given {
            *self.kept.entry(table.to_owned()).or_default() += given - inserted;
        }
        Ok(())
    }
}
