//! Classifies the SQL of a migration: what it does to tables and to the previous release. Migration
//! headers are compared with this.

use std::collections::BTreeSet;

use attesto::db::migration_header::TableImpact;

/// Words that start an addition to a table that is not a column.
const CONSTRAINT_KEYWORDS: [&str; 6] = [
    "constraint",
    "primary",
    "unique",
    "check",
    "foreign",
    "exclude",
];

/// The impact of a migration on each table, worst last. Tables that the migration creates are only
/// "creates".
pub(crate) fn table_impacts(sql: &str) -> Vec<(String, TableImpact)> {
    let mut found = BTreeSet::new();
    for statement in split_statements(sql) {
        found.extend(statement_impacts(&statement));
    }
    let made: BTreeSet<_> = found
        .iter()
        .filter(|(_, touch)| *touch == TableImpact::Creates)
        .map(|(table, _)| table.clone())
        .collect();
    let mut touches: Vec<_> = found
        .into_iter()
        .filter(|(table, touch)| *touch == TableImpact::Creates || !made.contains(table))
        .collect();
    // Only the worst of each.
    touches.sort_by(|one, other| (&one.0, other.1).cmp(&(&other.0, one.1)));
    touches.dedup_by(|one, other| one.0 == other.0);
    touches.sort_by_key(|(_, touch)| *touch);
    touches
}

/// What in a migration would break a process of the previous release, in words; `false` if it is
/// accepted with a reason.
pub(crate) fn find_incompatibilities(sql: &str) -> Vec<(String, bool)> {
    let made: BTreeSet<_> = table_impacts(sql)
        .into_iter()
        .filter(|(_, touch)| *touch == TableImpact::Creates)
        .map(|(table, _)| table)
        .collect();
    let mut found = Vec::new();
    for statement in split_statements(sql) {
        let words: Vec<&str> = statement.iter().map(String::as_str).collect();
        if let Some(what) = destructive_operation(&words) {
            found.push((what.to_owned(), true));
        }
        match words.as_slice() {
            ["create", "unique", "index", ..]
                if table_after_on(&words).is_none_or(|it| !made.contains(it)) =>
            {
                found.push(("a new rule that its rows may break".to_owned(), false));
            }
            ["alter", "table", rest @ ..] => {
                let (table, actions) = split_actions(rest);
                if made.contains(table) {
                    continue;
                }
                found.extend(
                    actions
                        .iter()
                        .filter_map(|action| action_incompatibility(action)),
                );
            }
            _ => {}
        }
    }
    found
}

/// How an action of `alter table` can reject rows of the previous release.
fn action_incompatibility(action: &[&str]) -> Option<(String, bool)> {
    let has = |word| action.contains(&word);
    let says = |words: [&str; 2]| action.windows(2).any(|pair| pair == words);
    let (what, certain) = match action {
        ["add", word, ..] if CONSTRAINT_KEYWORDS.contains(word) => {
            ("a new rule that its rows may break", false)
        }
        ["add", ..] if says(["not", "null"]) && !has("default") && !has("generated") => (
            "a column that must be filled, and it does not know it",
            true,
        ),
        ["alter", ..] if has("set") && says(["not", "null"]) => {
            ("a column that it may leave empty must be filled", true)
        }
        ["alter", ..] if says(["drop", "default"]) => (
            "a column that it may leave out has no default any more",
            true,
        ),
        _ => return None,
    };
    Some((what.to_owned(), certain))
}

/// What a migration deletes permanently.
pub(crate) fn list_destructive_operations(sql: &str) -> Vec<&'static str> {
    let statements = split_statements(sql).into_iter();
    let taken = statements.filter_map(|statement| {
        let words: Vec<&str> = statement.iter().map(String::as_str).collect();
        destructive_operation(&words)
    });
    taken.collect()
}

/// What a statement deletes permanently, if anything. Rules may be dropped; things that hold data
/// or are called by name may not.
fn destructive_operation(words: &[&str]) -> Option<&'static str> {
    match words {
        ["truncate", ..] => return Some("truncate"),
        ["drop", "index" | "trigger" | "policy", ..] => return None,
        ["drop", ..] => return Some("drop"),
        _ => {}
    }
    if words.windows(2).any(|pair| pair == ["delete", "from"]) {
        return Some("delete from");
    }
    let ["alter", kind, rest @ ..] = words else {
        return None;
    };
    if rest.contains(&"rename") {
        return Some("rename");
    }
    if *kind != "table" {
        return None;
    }
    split_actions(rest)
        .1
        .iter()
        .find_map(|action| match action.as_slice() {
            [
                "drop",
                "constraint" | "not" | "default" | "expression" | "identity",
                ..,
            ] => None,
            ["drop", ..] => Some("drop column"),
            ["alter", "column", _, "type", ..] | ["alter", _, "type", ..] => Some("alter type"),
            ["alter", "column", _, "set", "data", ..] | ["alter", _, "set", "data", ..] => {
                Some("alter type")
            }
            _ => None,
        })
}

fn statement_impacts(statement: &[String]) -> Vec<(String, TableImpact)> {
    let words: Vec<&str> = statement.iter().map(String::as_str).collect();
    let referenced = words
        .windows(2)
        .filter(|pair| pair[0] == "references")
        .map(|pair| (pair[1].to_owned(), TableImpact::Locks));
    let mut found: Vec<_> = referenced.collect();
    let mut add = |table: &str, touch| found.push((table.to_owned(), touch));
    match words.as_slice() {
        ["create", "table", "if", "not", "exists", table, ..] | ["create", "table", table, ..] => {
            add(table, TableImpact::Creates);
        }
        ["create", "index", ..] | ["create", "unique", "index", ..] => {
            add(
                table_after_on(&words).unwrap_or("a table"),
                TableImpact::ReadsAll,
            );
        }
        ["create", ..] if words.contains(&"trigger") && words[1] != "function" => {
            add(
                table_after_on(&words).unwrap_or("a table"),
                TableImpact::Locks,
            );
        }
        ["drop", "trigger", ..] => add(
            table_after_on(&words).unwrap_or("a table"),
            TableImpact::Locks,
        ),
        ["alter", "table", rest @ ..] => {
            let (table, actions) = split_actions(rest);
            for action in actions {
                add(table, action_impact(&action));
            }
        }
        ["update", "only", table, ..]
        | ["update", table, ..]
        | ["delete", "from", table, ..]
        | ["insert", "into", table, ..] => {
            add(table, TableImpact::ChangesRows);
        }
        [
            "with" | "do" | "call" | "select" | "truncate" | "drop" | "lock",
            ..,
        ] => {
            add("anything", TableImpact::Unknown);
        }
        _ => {}
    }
    found
}

/// The impact of one action of `alter table` on the table.
fn action_impact(action: &[&str]) -> TableImpact {
    const VOLATILE: [&str; 7] = [
        "bigserial",
        "random",
        "gen_random_uuid",
        "clock_timestamp",
        "nextval",
        "identity",
        "stored",
    ];
    let has = |word: &str| action.contains(&word);
    match action {
        ["add", "constraint", ..] if has("valid") => TableImpact::Locks,
        ["add", word, ..] if CONSTRAINT_KEYWORDS.contains(word) => TableImpact::ReadsAll,
        ["add", ..] if VOLATILE.iter().any(|word| has(word)) => TableImpact::Rewrites,
        ["add", ..] if has("check") || has("unique") => TableImpact::ReadsAll,
        ["alter", ..] if has("type") => TableImpact::Rewrites,
        ["alter", ..] if has("set") && has("not") => TableImpact::ReadsAll,
        _ if action.first() == Some(&"validate") => TableImpact::ReadsAll,
        _ => TableImpact::Locks,
    }
}

/// The table of `alter table`, and its actions.
fn split_actions<'a>(rest: &'a [&'a str]) -> (&'a str, Vec<Vec<&'a str>>) {
    let skipped = rest
        .iter()
        .take_while(|word| ["if", "exists", "only"].contains(word))
        .count();
    let [table, rest @ ..] = &rest[skipped..] else {
        return ("a table", Vec::new());
    };
    let (mut actions, mut depth) = (vec![Vec::new()], 0_u32);
    for word in rest {
        match *word {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            "," if depth == 0 => actions.push(Vec::new()),
            word => actions.last_mut().expect("one at least").push(word),
        }
    }
    (table, actions)
}

/// The table named after `on`.
fn table_after_on<'a>(words: &[&'a str]) -> Option<&'a str> {
    let position = words.iter().position(|word| *word == "on")?;
    words.get(position + 1).copied()
}

/// The statements, each as its words in lower case, without comments, string literals and function
/// bodies.
fn split_statements(sql: &str) -> Vec<Vec<String>> {
    let (mut statements, mut words) = (Vec::new(), Vec::new());
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '\'' {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else if first == '$' {
            // $$ … $$, or $tag$ … $tag$.
            let tag = rest[1..].find('$').map_or(rest, |end| &rest[..end + 2]);
            let body = &rest[tag.len()..];
            body.find(tag).map_or(rest.len(), |end| end + 2 * tag.len())
        } else if first.is_alphanumeric() || first == '_' {
            let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
            let length = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
            words.push(rest[..length].to_lowercase());
            length
        } else {
            match first {
                '(' | ')' | ',' => words.push(first.to_string()),
                ';' => statements.push(std::mem::take(&mut words)),
                _ => {}
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    statements.push(words);
    statements.retain(|words| !words.is_empty());
    statements
}

mod tests {
    use super::*;

    #[test]
    fn table_impacts_of_a_migration_are_classified() {
        use TableImpact::{ChangesRows, Creates, Locks, ReadsAll, Rewrites, Unknown};
        for (sql, expected) in [
            (
                "create table a (b text); create index on a (b);",
                vec![("a", Creates)],
            ),
            (
                "create table a (b text references c (d));",
                vec![("a", Creates), ("c", Locks)],
            ),
            (
                "alter table a add column b text, add c int default 1;",
                vec![("a", Locks)],
            ),
            (
                "alter table only a add b text check (b > ',');",
                vec![("a", ReadsAll)],
            ),
            (
                "alter table a add column b bigint generated always as (f(c)) stored;",
                vec![("a", Rewrites)],
            ),
            (
                "alter table a alter column b type text;",
                vec![("a", Rewrites)],
            ),
            (
                "alter table a add constraint x check (true) not valid;",
                vec![("a", Locks)],
            ),
            (
                "alter table a validate constraint x;",
                vec![("a", ReadsAll)],
            ),
            (
                "create unique index concurrently x on a (b);",
                vec![("a", ReadsAll)],
            ),
            (
                "update a set b = 1; alter table c add d int;",
                vec![("c", Locks), ("a", ChangesRows)],
            ),
            (
                "create trigger x after insert on a execute function f();",
                vec![("a", Locks)],
            ),
            (
                "create function f() returns trigger as $$ begin update a set b = 1; end $$;",
                vec![],
            ),
            (
                "do $$ begin execute 'drop table a'; end $$;",
                vec![("anything", Unknown)],
            ),
            (
                "-- update a\ninsert into a values ('; update b');",
                vec![("a", ChangesRows)],
            ),
        ] {
            let found = table_impacts(sql);
            let found: Vec<_> = found
                .iter()
                .map(|(table, it)| (table.as_str(), *it))
                .collect();
            assert_eq!(found, expected, "{sql}");
        }
    }

    #[test]
    fn destructive_statements_are_recognised() {
        for statement in [
            "drop table tenants",
            "DROP  TABLE\n IF EXISTS tenants",
            "alter table tenants drop column name",
            "alter table tenants drop name",
            "alter table tenants alter column name type varchar(10)",
            "alter table tenants alter name set data type varchar(10)",
            "alter table tenants rename to customers",
            "alter table tenants rename column name to title",
            "delete from tenants",
            "with gone as (delete from tenants returning id) select 1",
            "truncate tenants",
            "drop schema public cascade",
            "drop function notify_change",
        ] {
            assert_eq!(
                list_destructive_operations(statement).len(),
                1,
                "{statement}"
            );
        }
        for statement in [
            "create table drops (id text, type text)",
            "create trigger t after insert or delete or update on tenants",
            "alter table tenants add column type text",
            "alter table tenants alter column name drop not null",
            "alter table tenants drop constraint tenants_name_check",
            "create type mood as enum ('good')",
        ] {
            assert!(
                list_destructive_operations(statement).is_empty(),
                "{statement}"
            );
        }
    }

    #[test]
    fn statements_that_break_the_previous_release_are_found() {
        for sql in [
            "alter table a add column b text not null;",
            "alter table a alter b set not null;",
            "alter table a add b text not null default ''; alter table a alter b drop default;",
            "alter table a drop column b;",
            "drop table a;",
            "alter table a rename to b;",
            "alter table a add b text, alter column c set data type int;",
        ] {
            assert!(
                find_incompatibilities(sql)
                    .iter()
                    .any(|(_, certain)| *certain),
                "{sql}"
            );
        }
        for sql in [
            "create unique index on a (b);",
            "alter table a add constraint c check (d > 0);",
        ] {
            let found = find_incompatibilities(sql);
            assert!(
                !found.is_empty() && found.iter().all(|(_, certain)| !certain),
                "{sql}"
            );
        }
        for sql in [
            "create table a (b text not null); create unique index on a (b); alter table a add c int not null;",
            "alter table a add b text not null default '';",
            "alter table a add b bigint not null generated always as (1) stored;",
            "alter table a drop constraint c, alter d drop not null; drop index e;",
        ] {
            assert_eq!(find_incompatibilities(sql), [], "{sql}");
        }
    }
}
