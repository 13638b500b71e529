//! `attesto db`: grants read-only access to the database, and distributes its tables with Citus.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Serialize;

use super::context::{CommandContext, CommandError};
use crate::credentials::sealed_columns;
use crate::db::Database;
use crate::db::distribute::DistributionError;
use crate::replicas::LiveReplicas;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DatabaseCommand {
    /// Print the SQL that creates a role for statistics: it reads no secret, payload, purchase token or URL
    GrantReadonly {
        /// Name of the role, which is created when it does not exist
        #[arg(long, value_name = "NAME")]
        user: DatabaseRole,
        /// Run the SQL, in one transaction; needs a role that may create roles
        #[arg(long)]
        run: bool,
    },
    /// Distribute the tables over the workers of Citus, by lane; a run that was interrupted is continued by the next one
    Distribute {
        /// Print the steps, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// In how many shards the tables that grow are divided: at most one for each of the 64 lanes is of use
        #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
        shards: u16,
    },
}

/// A role name that needs no quotes in SQL.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseRole(String);

impl FromStr for DatabaseRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=63).contains(&text.len())
            && !text.starts_with(|letter: char| letter.is_ascii_digit())
            && !text.starts_with("pg_")
            && text.chars().all(|letter| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'
            });
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "must be 1 to 63 characters of a-z, 0-9 and _, and not begin with a digit or pg_"
                    .to_owned(),
            )
        }
    }
}

/// Columns that are not sealed and still private: payloads and their parts, identifiers that a store accepts in a request,
/// callback URLs, and the hashes that API keys are looked up by.
const PRIVATE_COLUMNS: [&str; 14] = [
    "app_user_id",
    "before",
    "after",
    "callback_url",
    "decoded_payload",
    "key_hash",
    "last_response_body",
    "raw_payload",
    "replaces",
    "stored_body",
    "subject_key",
    "token",
    "purchase_token",
    "refund_token",
];

fn is_private_column(table: &str, column: &str) -> bool {
    let is_sealed = sealed_columns::ALL_SEALED_COLUMNS
        .iter()
        .any(|it| it.table == table && it.column == column);
    // By its suffix, a sealed column of an extension or a newer release is private too.
    is_sealed || column.ends_with("_enc") || PRIVATE_COLUMNS.contains(&column)
}

pub(crate) async fn run(
    command: DatabaseCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    match command {
        DatabaseCommand::GrantReadonly { user, run } => {
            grant_readonly(&user, run, &database, context).await
        }
        DatabaseCommand::Distribute { dry_run, shards } => {
            distribute(dry_run, shards, &database, context).await
        }
    }
}

/// A step as one line of JSON: `done` is false of all steps of `--dry-run`.
#[derive(Serialize)]
struct DistributionStepView<'a> {
    step: &'a str,
    sql: &'a str,
    done: bool,
}

async fn distribute(
    dry_run: bool,
    shards: u16,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let refused = |error: DistributionError| CommandError::from_cause(error);
    let steps = database.plan_distribution(shards).await.map_err(refused)?;
    if !dry_run && !steps.is_empty() {
        match LiveReplicas::load(database).await?.replicas.len() {
            0 => {}
            1 => {
                return Err(CommandError::failed(
                    "1 replica is running on this database: stop it first, and start it again afterwards.",
                ));
            }
            running => {
                return Err(CommandError::failed(format!(
                    "{running} replicas are running on this database: stop all of them first, and start them again afterwards."
                )));
            }
        }
    }
    for step in &steps {
        if !dry_run {
            database
                .run_distribution_step(step)
                .await
                .map_err(refused)?;
        }
        let view = DistributionStepView {
            step: &step.description,
            sql: &step.statement,
            done: !dry_run,
        };
        let text = if dry_run {
            format!("{}: {};", step.description, step.statement)
        } else {
            format!("done: {}", step.description)
        };
        context.output.write_json_or_text(&view, &text)?;
    }
    let summary = match (steps.len(), dry_run) {
        (0, _) => "The tables are distributed: nothing is left to do.".to_owned(),
        (1, true) => "1 step is to be done. Nothing was changed.".to_owned(),
        (count, true) => format!("{count} steps are to be done. Nothing was changed."),
        (_, false) => "The tables are distributed. Start the replicas again.".to_owned(),
    };
    context.output.write_note(&summary)?;
    Ok(())
}

async fn grant_readonly(
    user: &DatabaseRole,
    run: bool,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let schema = database.tables_schema().await?.unwrap_or_default();
    let columns = database.list_columns(&schema).await?;
    if columns.is_empty() {
        return Err(CommandError::failed(
            "the database has no tables yet: run `attesto migrate` first.",
        ));
    }
    let statements = build_grant_statements(&user.0, &database.database_name(), &schema, &columns);
    let script = format!("{};", statements.join(";\n"));
    if !run {
        let shown = GrantScript {
            user: &user.0,
            sql: &script,
        };
        context.output.write_raw_text(&shown, &script)?;
        return Ok(());
    }
    database.run_in_transaction(&statements).await?;
    let granted = GrantResult {
        user: &user.0,
        columns: columns
            .iter()
            .filter(|(table, column)| !is_private_column(table, column))
            .count(),
    };
    let text = format!(
        "{} can read {} columns and write nothing. Set its password: psql -c '\\password {}'. Run this command again after an upgrade.",
        granted.user, granted.columns, granted.user
    );
    context.output.write_json_or_text(&granted, &text)?;
    Ok(())
}

#[derive(Serialize)]
struct GrantScript<'a> {
    user: &'a str,
    sql: &'a str,
}

#[derive(Serialize)]
struct GrantResult<'a> {
    user: &'a str,
    columns: usize,
}

fn build_grant_statements(
    role: &str,
    database: &str,
    schema: &str,
    columns: &[(String, String)],
) -> Vec<String> {
    let database = database.replace('"', "\"\"");
    let quoted_schema = format!("\"{}\"", schema.replace('"', "\"\""));
    let mut statements = vec![
        format!(
            "do $$ begin if not exists (select from pg_roles where rolname = '{role}') then \
             create role {role} login; end if; end $$"
        ),
        format!(
            "alter role {role} in database \"{database}\" set default_transaction_read_only = on"
        ),
        format!("alter role {role} in database \"{database}\" set statement_timeout = '60s'"),
        format!(
            "alter role {role} in database \"{database}\" set idle_in_transaction_session_timeout = '60s'"
        ),
        format!("grant connect on database \"{database}\" to {role}"),
        format!("grant usage on schema {quoted_schema} to {role}"),
        // An earlier release may have granted more.
        format!("revoke all on all tables in schema {quoted_schema} from {role}"),
    ];
    if schema != "public" {
        // The documented queries name no schema.
        statements.push(format!(
            "alter role {role} in database \"{database}\" set search_path = {quoted_schema}"
        ));
    }
    let mut visible: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (table, column) in columns {
        if !is_private_column(table, column) {
            visible
                .entry(table)
                .or_default()
                .push(format!("\"{column}\""));
        }
    }
    statements.extend(visible.into_iter().map(|(table, columns)| {
        format!(
            "grant select ({}) on {quoted_schema}.\"{table}\" to {role}",
            columns.join(", ")
        )
    }));
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_and_private_columns_are_not_granted() {
        let mut columns: Vec<(String, String)> = sealed_columns::ALL_SEALED_COLUMNS
            .iter()
            .map(|it| (it.table.to_owned(), it.column.to_owned()))
            .collect();
        columns.push(("future".to_owned(), "other_enc".to_owned()));
        columns.push(("purchase_links".to_owned(), "token".to_owned()));
        columns.push((
            "owed_acknowledgements".to_owned(),
            "purchase_token".to_owned(),
        ));
        columns.push(("tenants".to_owned(), "name".to_owned()));
        let all = build_grant_statements("bi", "attesto", "public", &columns).join("\n");
        assert!(!all.contains("_enc") && !all.contains("token"), "{all}");
        assert!(all.ends_with("grant select (\"name\") on \"public\".\"tenants\" to bi"));
    }

    #[test]
    fn a_role_name_needs_no_quotes() {
        for good in ["bi", "read_only_2", "_x"] {
            assert!(good.parse::<DatabaseRole>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "Bi",
            "2x",
            "pg_monitor",
            "a b",
            "x\"; drop role y; --",
            "a-b",
        ] {
            assert!(bad.parse::<DatabaseRole>().is_err(), "{bad}");
        }
    }
}
