//! The structure of the code: which module may use which, and which crates belong to which module.
//! `src/lib.rs` describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Every room of `src/`, from the lowest layer up. A room may use those before it in this list, and
/// none after it.
pub(crate) const ROOMS: [&str; 28] = [
    // Tools.
    "base",
    "telemetry",
    "crypto",
    "db",
    "embedded_postgres",
    "egress",
    "outbound",
    "http", //
    // Features.
    "replicas",
    "tenants",
    "credentials",
    "deliveries",
    "events",
    "audit",
    "stores/shared",
    "stores/apple",
    "stores/google",
    "simulator", //
    // Assembly.
    "server",
    "config",
    "backup",
    "tenant_transfer",
    "tail",
    "jobs",
    "retention",
    "checks",
    "app",
    "cli",
];

/// A source file: its path from `src/` on, and what the compiler reads of it outside tests.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The first part of its path, or the first two for a store: the room it is in.
    fn room(&self) -> &str {
        let parts = if self.path.starts_with("stores/") {
            2
        } else {
            1
        };
        let end = self.path.match_indices('/').nth(parts - 1);
        let room = end.map_or(self.path.as_str(), |(at, _)| &self.path[..at]);
        room.strip_suffix(".rs").unwrap_or(room)
    }

    /// Whether a line names `word` as a crate: before `::`, or alone after `use`.
    fn names_crate(&self, word: &str) -> bool {
        let (path, alone) = (format!("{word}::"), format!("use {word};"));
        self.text.lines().any(|line| {
            if line.trim_start() == alone {
                return true;
            }
            line.match_indices(&path).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "_:\"".contains(c))
            })
        })
    }

    /// The rooms it uses.
    fn uses(&self) -> BTreeSet<String> {
        let named = self.text.split("crate::").skip(1).flat_map(|rest| {
            let list = rest.strip_prefix('{').map(|list| {
                let list = list.split("};").next().unwrap();
                list.split(',').map(str::trim).map(room_in_path).collect()
            });
            list.unwrap_or_else(|| vec![room_in_path(rest)])
        });
        let mut rooms: BTreeSet<_> = named.filter(|name| !name.is_empty()).collect();
        rooms.remove(self.room());
        rooms.remove("VERSION");
        rooms
    }
}

/// The room that a path after `crate::` names.
fn room_in_path(path: &str) -> String {
    match path.strip_prefix("stores::") {
        Some(store) => format!("stores/{}", word(store)),
        None => word(path),
    }
}

/// The identifier that a text starts with.
fn word(text: &str) -> String {
    let ends = |c: char| !(c.is_alphanumeric() || c == '_');
    text.split(ends).next().unwrap().to_owned()
}

/// Without comments, and without the tests at the end of a file.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The Rust files below a folder, by their path in it, with their text. Folders called `tests` are left out.
fn rust_files(root: &Path) -> Vec<(String, String)> {
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().unwrap() != "tests" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                files.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources: Vec<_> = rust_files(&root)
        .into_iter()
        .filter(|(path, _)| !["main.rs", "lib.rs", "stores/mod.rs"].contains(&path.as_str()))
        .map(|(path, text)| Source {
            path,
            text: code(&text),
        })
        .collect();
    assert!(sources.len() > 100, "the sources are not where they were");
    sources
}

#[test]
fn no_module_uses_one_above_it() {
    let floor: BTreeMap<_, _> = ROOMS.iter().zip(0..).collect();
    let sources = sources();
    let rooms: BTreeSet<_> = sources.iter().map(Source::room).collect();
    assert_eq!(
        rooms,
        ROOMS.into(),
        "the rooms in src/ are those in the list"
    );

    let mut wrong = Vec::new();
    for source in &sources {
        for used in source.uses() {
            let room = source.room();
            let twins = [room, &used]
                .iter()
                .all(|name| ["stores/apple", "stores/google"].contains(name));
            if twins || floor[&room] < *floor.get(&used.as_str()).unwrap_or(&usize::MAX) {
                wrong.push(format!("{} uses {used}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn database_and_web_crates_are_used_only_in_their_modules() {
    let mut wrong = Vec::new();
    for source in sources() {
        let path = source.path.as_str();
        let named = |krate: &str| source.names_crate(krate);
        let store = path.ends_with("store.rs")
            || ["db/", "embedded_postgres/"]
                .iter()
                .any(|room| path.starts_with(room))
            || path == "base/id.rs";
        let web = ["http/", "server/", "simulator/"]
            .iter()
            .any(|room| path.starts_with(room))
            || path.ends_with("routes.rs")
            || path == "tenants/caller.rs";
        if named("sqlx") && !store {
            wrong.push(format!(
                "{path} names sqlx: queries belong in the room's store.rs"
            ));
        }
        if named("axum") && !web {
            wrong.push(format!(
                "{path} names axum: handlers belong in the room's routes.rs"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// sqlx' own texts hold lines of Postgres' source and paths of Rust modules.
#[test]
fn errors_of_the_database_are_described_and_never_passed_on_in_sqlx_own_words() {
    let mut wrong = Vec::new();
    for source in sources() {
        let words: Vec<&str> = source.text.split_whitespace().collect();
        let text = words.join(" ");
        for ty in [
            "#[from] Error",
            "#[from] db::Error",
            "#[from] crate::db::Error",
        ] {
            for kind in ["transparent", "\"{0}\""] {
                if text.contains(&format!("#[error({kind})] Database({ty})")) {
                    wrong.push(format!(
                        "{}: describe it with db::describe_cause",
                        source.path
                    ));
                }
            }
        }
        let is_logged = text.contains("error_class(&error);") && text.contains("cause = %error");
        if is_logged {
            wrong.push(format!("{}: log db::describe_cause(&error)", source.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lib_and_mod_files_hold_no_logic() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.path.ends_with("mod.rs") && source.text.contains("fn "))
        .map(|source| source.path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Tests that may read the machine's time, and why.
const READS_REAL_TIME: [(&str, &str); 3] = [
    ("admission.rs", "asserts a duration that must at least pass"),
    (
        "database_outages.rs",
        "compares two durations of the same run",
    ),
    (
        "webhook_delivery.rs",
        "asserts a duration that must at least pass",
    ),
];

#[test]
fn no_test_depends_on_the_speed_of_the_machine() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let mut problems = Vec::new();
    for (path, text) in rust_files(&folder) {
        // The one place where a test waits; and this list.
        if path == "world/wait.rs" || path == "tidy.rs" {
            continue;
        }
        let may_read = READS_REAL_TIME.iter().any(|(allowed, _)| *allowed == path);
        for line in code(&text).lines() {
            let waits = line.contains(" sleep(") || line.contains("::sleep(");
            let limits = line.contains(" timeout(") || line.contains("::timeout(");
            if waits || limits || (line.contains(".elapsed()") && !may_read) {
                problems.push(format!("tests/it/{path}: {}", line.trim()));
            }
        }
    }
    assert!(
        problems.is_empty(),
        "wait with tests/it/world/wait.rs, and limit no real time:\n{}",
        problems.join("\n")
    );
}
