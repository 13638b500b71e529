//! Unpacks a tenant.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::content::{MOVED, Part};
use super::document::{FORMAT, Label, Line};
use super::error::MoveError;
use super::store::{self, Batch, Unpacking};
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
pub struct Options {
    /// Whatever it was, it is inactive here.
    pub as_inactive: bool,
    /// Also over the same tenant.
    pub replace: bool,
    /// Do everything, and then nothing.
    pub dry_run: bool,
}

/// What was unpacked.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Whose it is, and of when.
    #[serde(flatten)]
    pub label: Label,
    /// Rows that were written, by their tables.
    pub rows: BTreeMap<String, u64>,
    /// Rows that were there already, by their tables.
    pub kept: BTreeMap<String, u64>,
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
        unpacking.make_room().await?;
    }
    let mut unpacked = Unpacked {
        keyring,
        label: &label,
        as_inactive: options.as_inactive,
        rows: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    unpacked.all(&mut unpacking, &mut reader).await?;
    let Unpacked { rows, kept, .. } = unpacked;
    unpacking.note_each(true).await?;
    let waiting = unpacking.waiting().await?;
    let note = json!({
        "exportedAt": label.exported_at,
        "history": label.history,
        "replaced": replaced,
        "rows": rows,
        "kept": kept,
        "sha256": sha256,
    });
    unpacking.note(&note).await?;
    if !options.dry_run {
        unpacking.commit().await?;
    }
    Ok(Imported {
        active: label.is_active && !options.as_inactive,
        label,
        rows,
        kept,
        waiting,
        replaced,
        dry_run: options.dry_run,
        sha256,
    })
}

struct Unpacked<'a> {
    keyring: &'a Keyring,
    label: &'a Label,
    as_inactive: bool,
    rows: BTreeMap<String, u64>,
    kept: BTreeMap<String, u64>,
}

/// The table whose rows are being read.
struct Open {
    part: &'static Part,
    columns: Vec<String>,
    batch: Batch,
    bytes: usize,
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
                    open = Some(Open {
                        part,
                        columns,
                        batch: Batch::default(),
                        bytes: 0,
                    });
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
                    open.batch.rows.push(Box::<str>::from(fields).into());
                    open.batch.secrets.push(sealed);
                    open.bytes += length;
                    *read.entry(open.part.table.to_owned()).or_default() += 1;
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
        let given = open.batch.rows.len() as u64;
        let table = open.part.table;
        let inserted = if given == 0 {
            0
        } else {
            let (part, columns, batch) = (open.part, &open.columns, &open.batch);
            let inserted = unpacking.insert(part, columns, batch, self.as_inactive);
            inserted.await?
        };
        open.batch = Batch::default();
        open.bytes = 0;
        *self.rows.entry(table.to_owned()).or_default() += inserted;
        if inserted < given {
            *self.kept.entry(table.to_owned()).or_default() += given - inserted;
        }
        Ok(())
    }
}
