//! Parses the header of a migration's file: its purpose, its effect on tables, and whether the previous release can
//! still work.
//!
//! ```sql
//! -- What it is for, in a sentence or two.
//! -- previous release: works
//! -- tables: creates flavours; reads_all webhook_events, webhook_deliveries
//! ```
//!
//! The line `tables` names the strongest effect on each table, in the words of [`TableImpact`]. For a table that the
//! migration creates, that is `creates`. If it affects none, the line says `none`. The line `previous release` is
//! required in migrations after those of the first release. It says `works`, or `works, <why>` if the SQL alone does
//! not show it, or `stops, <why>`. It is stored in the table `schema_promises` with the migration, where a release
//! that does not know the migration finds it.
//!
//! A test compares each header with its SQL (`tests/it/migrations.rs`).

use serde::Serialize;
use strum::{EnumString, IntoStaticStr};

/// The last migration of the first release. Every release has these migrations.
pub const FIRST_RELEASE_VERSION: i64 = 8;

/// Whether a process of the previous release can still work after a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compatibility {
    /// Whether it can still work.
    pub previous_works: bool,
    /// The reason, if the SQL alone does not show it.
    pub why: Option<String>,
}

/// What a migration does to one table.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TableImpact {
    /// Creates the table.
    Creates,
    /// Locks the table exclusively for a moment.
    Locks,
    /// Changes some of its rows.
    ChangesRows,
    /// Reads the whole table, which blocks writes meanwhile.
    ReadsAll,
    /// Rewrites the whole table, which blocks reads and writes meanwhile.
    Rewrites,
    /// Cannot be known in advance.
    Unknown,
}

impl TableImpact {
    /// The predicate of a sentence whose subject is the table.
    pub fn describe_impact(self) -> &'static str {
        match self {
            Self::Creates => "is created",
            Self::Locks => "is locked for a moment, once no transaction uses it",
            Self::ChangesRows => {
                "has some of its rows changed; other transactions that change the same rows wait"
            }
            Self::ReadsAll => "is read completely; writes to it wait meanwhile",
            Self::Rewrites => "is rewritten completely, and is locked meanwhile",
            Self::Unknown => "may be changed in any way",
        }
    }
}

const COMPATIBILITY_PREFIX: &str = "-- previous release: ";
const TABLES_PREFIX: &str = "-- tables: ";

/// Whether the previous release can still work. `None` if the header does not state it.
pub fn parse_compatibility(sql: &str) -> Option<Compatibility> {
    let stated = sql
        .lines()
        .find_map(|line| line.strip_prefix(COMPATIBILITY_PREFIX))?;
    let (word, why) = match stated.split_once(',') {
        Some((word, why)) => (word, Some(why.trim().to_owned())),
        None => (stated, None),
    };
    let previous_works = match word.trim() {
        "works" => true,
        "stops" => false,
        _ => return None,
    };
    Some(Compatibility {
        previous_works,
        why: why.filter(|why| !why.is_empty()),
    })
}

/// The purpose of a migration: the comment at the top of its file.
pub fn parse_purpose(sql: &str) -> String {
    let lines = sql.lines().take_while(|line| line.starts_with("--"));
    let is_statement =
        |line: &str| line.starts_with(COMPATIBILITY_PREFIX) || line.starts_with(TABLES_PREFIX);
    let lines = lines.filter(|line| !is_statement(line));
    let lines: Vec<_> = lines.map(|line| line[2..].trim()).collect();
    lines.join(" ").trim().to_owned()
}

/// The affected tables and the effect on each, in the header's order. A missing or unreadable line gives
/// [`TableImpact::Unknown`].
pub fn parse_table_impacts(sql: &str) -> Vec<(String, TableImpact)> {
    let stated = sql
        .lines()
        .find_map(|line| line.strip_prefix(TABLES_PREFIX));
    let impacts = match stated.map(str::trim) {
        Some("none") => Some(Vec::new()),
        Some(stated) => stated.split(';').map(parse_impact).collect(),
        None => None,
    };
    let unknown = || vec![vec![("anything".to_owned(), TableImpact::Unknown)]];
    impacts.unwrap_or_else(unknown).concat()
}

/// One impact and the tables it is done to: `locks tenants, api_keys`.
fn parse_impact(stated: &str) -> Option<Vec<(String, TableImpact)>> {
    let (word, tables) = stated.trim().split_once(' ')?;
    let impact: TableImpact = word.parse().ok()?;
    let tables = tables.split(',');
    Some(
        tables
            .map(|table| (table.trim().to_owned(), impact))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_read() {
        let works = |why: Option<&str>| Compatibility {
            previous_works: true,
            why: why.map(str::to_owned),
        };
        for (sql, expected) in [
            (
                "-- What it is for.\n-- previous release: works\ncreate table a ();",
                Some(works(None)),
            ),
            (
                "-- previous release: works, as before",
                Some(works(Some("as before"))),
            ),
            ("-- previous release: perhaps", None),
            ("create table a ();", None),
        ] {
            assert_eq!(parse_compatibility(sql), expected, "{sql}");
        }
        let stops = parse_compatibility("-- previous release: stops, it reads b").unwrap();
        assert!(!stops.previous_works);
        let sql =
            "-- What it is\n-- for.\n-- previous release: works\n\n-- Another.\ncreate table a ();";
        assert_eq!(parse_purpose(sql), "What it is for.");
    }

    #[test]
    fn what_is_done_to_tables_is_read() {
        use TableImpact::{Creates, Locks, Unknown};
        let impact = |table: &str, impact| (table.to_owned(), impact);
        for (sql, expected) in [
            (
                "-- Why.\n-- tables: creates a; locks b, c\ncreate table a ();",
                vec![impact("a", Creates), impact("b", Locks), impact("c", Locks)],
            ),
            ("-- tables: none", vec![]),
            ("-- tables: paints a", vec![impact("anything", Unknown)]),
            ("create table a ();", vec![impact("anything", Unknown)]),
        ] {
            assert_eq!(parse_table_impacts(sql), expected, "{sql}");
        }
    }
}
