//! Unpacks a tenant.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::content::{MOVED, Part, Present};
use super::document::{FORMAT, Label, Line};
use super::error::MoveError;
use super::store::{self, Batch, Elsewhere, NETWORKS, Unpacking};
use crate::backup::manifest::digest;
use crate::crypto::keyring::Keyring;
use crate::crypto::sealed_file::{Opener, With};
use crate::db::Database;

/// Rows that are written at once.
const ROWS: usize = 200;
/// Or this much of the file.
const BYTES: usize = 4 * 1024 * 1024;

/// How to unpack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command's, and they go with each other in any way"
)]
pub struct Options {
    /// Whatever it was, it is inactive here.
    pub as_inactive: bool,
    /// Also over the same tenant.
    pub replace: bool,
    /// Open the networks too that were open to its callback. They are of the old installation's surroundings.
    pub with_networks: bool,
    /// Do everything, and then nothing.
    pub dry_run: bool,
}

/// What was unpacked.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "what is said of an import, each for itself"
)]
pub struct Imported {
    /// Whose it is, and of when.
    #[serde(flatten)]
    pub label: Label,
    /// Rows that were written, by their tables.
    pub rows: BTreeMap<String, u64>,
    /// Rows that were there already, by their tables.
    pub kept: BTreeMap<String, u64>,
    /// Events that are here under another id, as their store reported them here too.
    pub known: u64,
    /// Deliveries that were left out, since their event is here under another id and has its own.
    pub superseded: u64,
    /// The networks in the file, as `network:port`.
    pub networks: Vec<String>,
    /// Whether they are open here now.
    pub networks_opened: bool,
    /// Deliveries of the tenant that are still to be sent, here.
    pub waiting: i64,
    /// Whether it is active here.
    pub active: bool,
    /// Whether the tenant was here before.
    pub replaced: bool,
    /// Whether nothing was written after all.
    pub dry_run: bool,
    /// Of the file, in hexadecimal.
    pub sha256: String,
}

/// Reads `file` and writes the tenant in one transaction, secrets sealed by `keyring`; the caller has made sure that it is this
/// database's.
pub async fn import(
    database: &Database,
    keyring: &Keyring,
    file: &Path,
    with: &With,
    options: Options,
) -> Result<Imported, MoveError> {
    let failed = |cause| MoveError::File {
        path: file.to_owned(),
        cause,
    };
    let (_, sha256) = digest(file).map_err(failed)?;
    let opener = Opener::new(File::open(file).map_err(failed)?, with)?;
    let mut reader = BufReader::new(opener);
    let Some((Line::Label(label), _)) = Line::read(&mut reader)? else {
        return Err(MoveError::Unreadable("it does not say whose it is".into()));
    };
    if label.format != FORMAT {
        return Err(MoveError::Newer {
            attesto: label.attesto,
        });
    }
    let mut unpacking = Unpacking::begin(database, &label.tenant).await?;
    if label.schema_version > unpacking.schema_version {
        return Err(MoveError::Newer {
            attesto: label.attesto,
        });
    }
    let replaced = unpacking.is_there().await?;
    if replaced && !options.replace {
        return Err(MoveError::Exists(label.tenant));
    }
    if replaced {
        unpacking.make_room(options.with_networks).await?;
    }
    let mut unpacked = Unpacked {
        keyring,
        label: &label,
        with_networks: options.with_networks,
        replaced,
        last: None,
        elsewhere: HashMap::new(),
        superseded: 0,
        networks: Vec::new(),
        rows: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    unpacked.all(&mut unpacking, &mut reader).await?;
    // Whoever takes in an event for the tenant reads its row, which is not to be held all the while.
    if let Some(mut last) = unpacked.last.take() {
        unpacked.put(&mut unpacking, &mut last).await?;
    }
    let Unpacked {
        rows,
        kept,
        elsewhere,
        superseded,
        networks,
        ..
    } = unpacked;
    let active = unpacking.is_active(options.as_inactive).await?;
    let active = active.ok_or_else(|| MoveError::Unreadable("its tenant is missing".into()))?;
    unpacking.note_what_waited().await?;
    let waiting = unpacking.waiting().await?;
    let note = json!({
        "exportedAt": label.exported_at,
        "history": label.history,
        "replaced": replaced,
        "rows": rows,
        "kept": kept,
        "superseded": superseded,
        "sha256": sha256,
    });
    unpacking.note(&note).await?;
    if !options.dry_run {
        unpacking.commit().await?;
    }
    Ok(Imported {
        active,
        label,
        rows,
        kept,
        known: elsewhere.len() as u64,
        superseded,
        networks_opened: options.with_networks && !networks.is_empty(),
        networks,
        waiting,
        replaced,
        dry_run: options.dry_run,
        sha256,
    })
}

struct Unpacked<'a> {
    keyring: &'a Keyring,
    label: &'a Label,
    with_networks: bool,
    replaced: bool,
    /// The tenant's own row, where it is there already.
    last: Option<Open>,
    elsewhere: HashMap<String, Elsewhere>,
    superseded: u64,
    networks: Vec<String>,
    rows: BTreeMap<String, u64>,
    kept: BTreeMap<String, u64>,
}

/// A network as the file has it.
#[derive(Deserialize)]
struct Network {
    network: String,
    port: u16,
}

impl Network {
    /// As it is said, where nothing in it could be anything else than an address.
    fn parse(fields: &str) -> Option<String> {
        let it: Self = serde_json::from_str(fields).ok()?;
        let is_plain =
            |letter: char| letter.is_ascii_hexdigit() || matches!(letter, '.' | ':' | '/');
        it.network
            .chars()
            .all(is_plain)
            .then(|| format!("{}:{}", it.network, it.port))
    }
}

/// The table whose rows are being read.
struct Open {
    part: &'static Part,
    columns: Vec<String>,
    batch: Batch,
    bytes: usize,
}

impl Open {
    fn of(part: &'static Part, columns: Vec<String>) -> Self {
        Self {
            part,
            columns,
            batch: Batch::default(),
            bytes: 0,
        }
    }
}

impl Unpacked<'_> {
    /// Every line but the first. The last one must say what all the others said.
    async fn all(
        &mut self,
        unpacking: &mut Unpacking,
        reader: &mut impl BufRead,
    ) -> Result<(), MoveError> {
        let mut open: Option<Open> = None;
        let mut read: BTreeMap<String, u64> = BTreeMap::new();
        let mut tables = MOVED.iter();
        loop {
            let Some((line, length)) = Line::read(reader)? else {
                return Err(MoveError::Unreadable("its end is missing".into()));
            };
            match line {
                Line::Label(_) => {
                    return Err(MoveError::Unreadable("it says twice whose it is".into()));
                }
                Line::Table { name, columns } => {
                    self.write(unpacking, open.as_mut()).await?;
                    // In our order, which is that of their references; one of an older release has fewer.
                    let part = tables.find(|part| part.table == name);
                    let part = part.ok_or_else(|| {
                        MoveError::Unreadable(format!("it has no place for a table called {name}"))
                    })?;
                    let known = unpacking.columns(part.table).await?;
                    if columns.is_empty() || columns.iter().any(|name| !known.contains(name)) {
                        return Err(MoveError::Newer {
                            attesto: self.label.attesto.clone(),
                        });
                    }
                    unpacking.note_each(!part.noted_together).await?;
                    read.insert(name, 0);
                    open = Some(Open::of(part, columns));
                }
                Line::Row { fields, secret } => {
                    let Some(open) = open.as_mut() else {
                        return Err(MoveError::Unreadable("a row is of no table".into()));
                    };
                    let column = store::sealed_column(open.part.table);
                    let sealed = match column.zip(secret) {
                        None => None,
                        Some((column, secret)) => {
                            let place = column.of(self.label.tenant.as_str());
                            Some(self.keyring.seal(place, &secret.bytes()?))
                        }
                    };
                    *read.entry(open.part.table.to_owned()).or_default() += 1;
                    let fields = Box::<str>::from(fields).into();
                    let Some(fields) = self.wanted(open.part, fields)? else {
                        continue;
                    };
                    open.batch.rows.push(fields);
                    open.batch.secrets.push(sealed);
                    open.bytes += length;
                    if open.batch.rows.len() >= ROWS || open.bytes >= BYTES {
                        self.write(unpacking, Some(open)).await?;
                    }
                }
                Line::End { rows } => {
                    self.write(unpacking, open.as_mut()).await?;
                    if rows != read || reader.fill_buf().is_ok_and(|rest| !rest.is_empty()) {
                        return Err(MoveError::Unreadable(
                            "it counts other rows than it has".into(),
                        ));
                    }
                    // The very end is proven by reading it.
                    return match Line::read(reader)? {
                        None => Ok(()),
                        Some(_) => Err(MoveError::Unreadable("it goes on after its end".into())),
                    };
                }
            }
        }
    }

    async fn write(
        &mut self,
        unpacking: &mut Unpacking,
        open: Option<&mut Open>,
    ) -> Result<(), MoveError> {
        let Some(open) = open else { return Ok(()) };
        if !self.replaced || open.part.present != Present::Overwritten {
            return self.put(unpacking, open).await;
        }
        let columns = open.columns.clone();
        let next = Open::of(open.part, columns);
        let given = std::mem::replace(open, next);
        if given.batch.rows.is_empty() {
            return Ok(());
        }
        match self.last.replace(given) {
            None => Ok(()),
            Some(_) => Err(MoveError::Unreadable("it has two tenants".into())),
        }
    }

    /// The row as it is to be written, if it is: without networks where they were not asked for, and a delivery for the event as
    /// it is called here.
    fn wanted(&mut self, part: &Part, fields: String) -> Result<Option<String>, MoveError> {
        let odd = || MoveError::Unreadable(format!("a row of {} is odd", part.table));
        if part.table == NETWORKS {
            self.networks.push(Network::parse(&fields).ok_or_else(odd)?);
            return Ok(self.with_networks.then_some(fields));
        }
        if part.table != "webhook_deliveries" || self.elsewhere.is_empty() {
            return Ok(Some(fields));
        }
        let mut row: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&fields).map_err(|_| odd())?;
        let event = row.get("event_id").and_then(serde_json::Value::as_str);
        match event.and_then(|event| self.elsewhere.get(event)) {
            None => Ok(Some(fields)),
            Some(there) if there.has_deliveries => {
                self.superseded += 1;
                Ok(None)
            }
            Some(there) => {
                row.insert("event_id".to_owned(), there.event.clone().into());
                let row = serde_json::Value::Object(row);
                Ok(Some(row.to_string()))
            }
        }
    }

    async fn put(&mut self, unpacking: &mut Unpacking, open: &mut Open) -> Result<(), MoveError> {
        let given = open.batch.rows.len() as u64;
        let (part, batch) = (open.part, &open.batch);
        let table = part.table;
        let mut inserted = 0;
        if given > 0 {
            let written = unpacking.insert(part, &open.columns, batch, self.replaced);
            inserted = written.await?;
        }
        if inserted < given {
            match part.present {
                // Somebody else was quicker.
                Present::Overwritten => return Err(MoveError::Exists(self.label.tenant.clone())),
                Present::Removed => {}
                Present::Kept => {
                    let strangers = given - unpacking.present(part, batch).await?.min(given);
                    if strangers > 0 {
                        return Err(MoveError::Strangers {
                            tenant: self.label.tenant.clone(),
                            table,
                            count: strangers,
                        });
                    }
                }
            }
            if table == "webhook_events" {
                self.elsewhere.extend(unpacking.elsewhere(batch).await?);
            }
        }
        open.batch = Batch::default();
        open.bytes = 0;
        *self.rows.entry(table.to_owned()).or_default() += inserted;
        if inserted < given {
            *self.kept.entry(table.to_owned()).or_default() += given - inserted;
        }
        Ok(())
    }
}
