//! Spreads the tables of a database, fresh or filled, over the workers of Citus, in steps. A run reads from the catalogue what is done
//! and plans only the other steps, so that it continues one that was interrupted.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::distribution::{DISTRIBUTED_TABLES, DistributedTable, Placement};
use super::row_changes::CONFIGURED_TABLES;
use super::{Database, Error, SchemaState, describe_cause};

/// The functions that statements on distributed tables call, so that every worker needs them.
const WORKER_FUNCTIONS: &[&str] = &[
    "attesto_now",
    "auditable",
    "callback_takes",
    "is_store_message",
    "nth_delivery_id",
    "purchase_token_hash",
    "raise_notification_repeated",
    "tenant_lane",
];
/// The functions of the triggers that Citus refuses.
const TRIGGER_FUNCTIONS: &[&str] = &["audit_change", "notify_change"];
/// The table that decides how many shards all tables by lane have.
const FIRST_BY_LANE: &str = "webhook_events";
const HAS_CITUS_SQL: &str = "select exists (select from pg_extension where extname = 'citus')";

/// What was not done when the plan was made. A step that fails changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistributionStep {
    /// Begins with a verb in lower case and has no full stop: `copy tenants to every worker`.
    pub description: String,
    /// SQL without a semicolon at its end. Several statements in it run in one transaction.
    pub statement: String,
}

/// Why tables were not distributed.
#[derive(Debug, thiserror::Error)]
pub enum DistributionError {
    /// Migrations of this release are missing, or all of them.
    #[error("the tables are not those of this release: run `attesto migrate` first")]
    TablesOutdated,
    /// Also where this release can work on the newer tables: it does not know which of them are to be distributed.
    #[error(
        "the database was migrated by a newer release: run this command with the release that migrated it"
    )]
    TablesNewer,
    /// A migration in the database has another checksum, or was never one of this release's.
    #[error(
        "the migrations in the database are not this release's: `attesto migrate --dry-run` says which one differs"
    )]
    TablesDiverged,
    /// The extension is not installed in this database.
    #[error(
        "this database has no Citus: have its server load citus (shared_preload_libraries), and run `create extension citus` in this database and in the one of this name on each worker"
    )]
    NoCitus,
    /// The coordinator knows no active worker that takes shards.
    #[error(
        "no worker is known that takes shards: run `select citus_add_node('<host>', <port>)` in this database for each worker"
    )]
    NoWorkers,
    /// Contains the first of our tables that is another role's: only its owner may drop its triggers and distribute it.
    #[error(
        "the database's role does not own the table {0}: run this command with the role that ran `attesto migrate`"
    )]
    NotOwner(String),
    /// Postgres or Citus refused a statement.
    #[error(
        "could not {step}: {}. Every step before it is done. Run the command again to go on: until it has ended, changes of rows may not be logged and foreign keys may be missing",
        describe_cause(.cause)
    )]
    StepFailed {
        /// [`DistributionStep::description`], which follows `could not`.
        step: String,
        /// Of the server, or of the connection to it: then the step may be done nevertheless.
        cause: Error,
    },
    /// Any other error, for example a database that cannot be reached.
    #[error("{}", describe_cause(.0))]
    Database(#[from] Error),
}

/// What the catalogue says about our tables.
#[derive(Debug, Default)]
struct Catalogue {
    /// The triggers that Citus refuses: their tables and their names, both quoted where SQL needs it.
    triggers: BTreeSet<(String, String)>,
    /// The tables and the names of all foreign keys, also of those that are not ours.
    foreign_keys: BTreeSet<(String, String)>,
    /// By the names of tables. Those that only the coordinator has are not in it.
    placements: BTreeMap<String, Placement>,
    /// The functions that workers lack, as literals of SQL: `'tenant_lane(text)'`.
    functions: Vec<String>,
    /// Our tables that have rows on the coordinator itself: of a distributed table, those of before, which nothing reads.
    filled: BTreeSet<String>,
}

impl Database {
    /// What remains to be done until the tables are distributed. Changes nothing.
    pub async fn plan_distribution(
        &self,
        shards: u16,
    ) -> Result<Vec<DistributionStep>, DistributionError> {
        let mut connection = self.connect_to_distribute().await?;
        let steps = plan_steps(&Catalogue::load(&mut connection).await?, shards);
        let _ = connection.close().await;
        Ok(steps)
    }

    /// Runs a step of the plan on a connection of its own, for as long as it takes.
    pub async fn run_distribution_step(
        &self,
        step: &DistributionStep,
    ) -> Result<(), DistributionError> {
        let mut connection = self.connect_to_distribute().await?;
        let done = connection
            .execute(AssertSqlSafe(step.statement.clone()))
            .await;
        let _ = connection.close().await;
        done.map(drop)
            .map_err(|cause| DistributionError::StepFailed {
                step: step.description.clone(),
                cause,
            })
    }

    /// How many steps are missing where a distribution has begun. `None`: the tables are on one Postgres.
    pub(crate) async fn count_missing_distribution_steps(&self) -> Result<Option<usize>, Error> {
        let has_citus: bool = sqlx::query_scalar(HAS_CITUS_SQL)
            .fetch_one(self.pool())
            .await?;
        if !has_citus {
            return Ok(None);
        }
        // Before the migrations, triggers are missing too.
        let is_migrated = matches!(self.load_schema_state().await?, SchemaState::UpToDate);
        let mut connection = self.connect_directly("attesto-distribute").await?;
        let catalogue = Catalogue::load(&mut connection).await?;
        let _ = connection.close().await;
        let has_begun = catalogue.has_distributed_table()
            || (is_migrated && catalogue.is_change_trigger_missing());
        Ok(has_begun.then(|| plan_steps(&catalogue, 1).len()))
    }

    /// A connection without limits of time: a step copies the rows of a table.
    async fn connect_to_distribute(&self) -> Result<PgConnection, DistributionError> {
        match self.load_schema_state().await? {
            SchemaState::UpToDate => {}
            SchemaState::Behind(_) => return Err(DistributionError::TablesOutdated),
            SchemaState::Ahead | SchemaState::AheadAndCompatible => {
                return Err(DistributionError::TablesNewer);
            }
            SchemaState::Diverged => return Err(DistributionError::TablesDiverged),
        }
        let mut connection = self.connect_directly("attesto-distribute").await?;
        let has_citus: bool = sqlx::query_scalar(HAS_CITUS_SQL)
            .fetch_one(&mut connection)
            .await?;
        if !has_citus {
            return Err(DistributionError::NoCitus);
        }
        let has_workers: bool = sqlx::query_scalar(
            "select exists (select from pg_dist_node where noderole = 'primary' and isactive and shouldhaveshards)",
        )
        .fetch_one(&mut connection)
        .await?;
        if !has_workers {
            return Err(DistributionError::NoWorkers);
        }
        let foreign: Option<String> = sqlx::query_scalar(
            "select relname::text from pg_class
             where relnamespace = current_schema()::regnamespace and relname = any($1)
                and not pg_has_role(relowner, 'usage')
             order by relname limit 1",
        )
        .bind(table_names())
        .fetch_optional(&mut connection)
        .await?;
        if let Some(table) = foreign {
            return Err(DistributionError::NotOwner(table));
        }
        connection
            .execute("set statement_timeout = 0; set lock_timeout = '60s'; set client_min_messages = warning")
            .await?;
        Ok(connection)
    }
}

impl Catalogue {
    async fn load(connection: &mut PgConnection) -> Result<Self, Error> {
        let triggers: Vec<(String, String)> = sqlx::query_as(
            "select tgrelid::regclass::text, quote_ident(tgname) from pg_trigger
             join pg_proc on pg_proc.oid = tgfoid
             where not tgisinternal and proname = any($1) and tgrelid = any(array(
                select to_regclass(name)::oid from unnest($2::text[]) as name))",
        )
        .bind(TRIGGER_FUNCTIONS)
        .bind(table_names())
        .fetch_all(&mut *connection)
        .await?;
        let foreign_keys: Vec<(String, String)> = sqlx::query_as(
            "select conrelid::regclass::text, conname::text from pg_constraint
             where contype = 'f' and conrelid = any(array(
                select to_regclass(name)::oid from unnest($1::text[]) as name))",
        )
        .bind(table_names())
        .fetch_all(&mut *connection)
        .await?;
        let placements: Vec<(String, String)> = sqlx::query_as(
            "select logicalrelid::regclass::text, partmethod::text from pg_dist_partition \
             where partmethod = 'h' or (partmethod = 'n' and repmodel = 't')",
        )
        .fetch_all(&mut *connection)
        .await?;
        let functions = sqlx::query_scalar(
            "select quote_literal(pg_proc.oid::regprocedure::text) from pg_proc
             where pronamespace = current_schema()::regnamespace and proname = any($1)
                and not exists (
                    select from pg_dist_object where classid = 'pg_proc'::regclass and objid = pg_proc.oid)
             order by 1",
        )
        .bind(WORKER_FUNCTIONS)
        .fetch_all(&mut *connection)
        .await?;
        let filled: Vec<String> = sqlx::query_scalar(
            "select name from unnest($1::text[]) as name where pg_relation_size(to_regclass(name)) > 0",
        )
        .bind(table_names())
        .fetch_all(connection)
        .await?;
        let placement = |method: String| match method.as_str() {
            "h" => Placement::ByLane,
            _ => Placement::Reference,
        };
        Ok(Self {
            triggers: triggers.into_iter().collect(),
            foreign_keys: foreign_keys.into_iter().collect(),
            placements: placements
                .into_iter()
                .map(|(table, method)| (table, placement(method)))
                .collect(),
            functions,
            filled: filled.into_iter().collect(),
        })
    }

    fn is_distributed(&self, table: &str) -> bool {
        self.placements.contains_key(table)
    }

    fn has_distributed_table(&self) -> bool {
        DISTRIBUTED_TABLES
            .iter()
            .any(|table| self.is_distributed(table.name))
    }

    /// Whether a trigger was dropped that the migrations create.
    fn is_change_trigger_missing(&self) -> bool {
        let has =
            |table: &str, name: &str| self.triggers.contains(&(table.to_owned(), name.to_owned()));
        !has("tenants", "notify_change")
            || CONFIGURED_TABLES
                .iter()
                .any(|table| !has(table, "audit_change"))
    }

    fn has_foreign_key(&self, table: &str, name: &str) -> bool {
        self.foreign_keys
            .contains(&(table.to_owned(), name.to_owned()))
    }
}

fn table_names() -> Vec<&'static str> {
    DISTRIBUTED_TABLES.iter().map(|table| table.name).collect()
}

/// Triggers and foreign keys first, then the tables, then the foreign keys again: Citus distributes no table that has a trigger or a
/// foreign key to a table that is not distributed. At the end the rows that were copied are removed from the coordinator.
fn plan_steps(catalogue: &Catalogue, shards: u16) -> Vec<DistributionStep> {
    let mut steps = Vec::new();
    let mut add = |description: String, statement: String| {
        steps.push(DistributionStep {
            description,
            statement,
        });
    };
    if !catalogue.triggers.is_empty() {
        // All in one transaction: `has_change_triggers` looks at one of them only.
        let (tables, statements) = drop_triggers(&catalogue.triggers);
        add(format!("drop the triggers of {tables}"), statements);
    }
    let is_dropped = |table: &DistributedTable, target: &str| {
        !(catalogue.is_distributed(table.name) && catalogue.is_distributed(target))
    };
    for table in DISTRIBUTED_TABLES {
        for key in table.foreign_keys {
            if is_dropped(table, key.target) && catalogue.has_foreign_key(table.name, key.name) {
                add(
                    format!("drop the foreign key {} for now", key.name),
                    format!("alter table {} drop constraint {}", table.name, key.name),
                );
            }
        }
    }
    for function in &catalogue.functions {
        add(
            format!(
                "create the function {} on the workers",
                function.trim_matches('\'')
            ),
            format!("select create_distributed_function({function})"),
        );
    }
    for table in DISTRIBUTED_TABLES {
        if !catalogue.is_distributed(table.name) {
            let (description, statement) = distribute_table(table, shards);
            add(description, statement);
        }
    }
    for table in DISTRIBUTED_TABLES {
        for key in table.foreign_keys {
            if is_dropped(table, key.target) || !catalogue.has_foreign_key(table.name, key.name) {
                add(
                    format!("add the foreign key {}", key.name),
                    format!(
                        "alter table {} add constraint {} {}",
                        table.name, key.name, key.definition
                    ),
                );
            }
        }
    }
    for DistributedTable { name, .. } in DISTRIBUTED_TABLES {
        if catalogue.filled.contains(*name) {
            add(
                format!("remove from the coordinator the rows of {name} that were copied"),
                format!("select truncate_local_data_after_distributing_table('{name}')"),
            );
        }
    }
    steps
}

/// The tables for the description, and the statements.
fn drop_triggers(triggers: &BTreeSet<(String, String)>) -> (String, String) {
    let tables: BTreeSet<&str> = triggers.iter().map(|(table, _)| table.as_str()).collect();
    let statements = triggers
        .iter()
        .map(|(table, trigger)| format!("drop trigger {trigger} on {table}"));
    (
        tables.into_iter().collect::<Vec<_>>().join(", "),
        statements.collect::<Vec<_>>().join("; "),
    )
}

/// The description and the statement.
fn distribute_table(table: &DistributedTable, shards: u16) -> (String, String) {
    let name = table.name;
    match table.placement {
        Placement::Reference => (
            format!("copy {name} to every worker"),
            format!("select create_reference_table('{name}')"),
        ),
        Placement::ByLane if name == FIRST_BY_LANE => (
            format!("distribute {name} by lane, in {shards} shards"),
            format!(
                "select create_distributed_table('{name}', 'lane', shard_count => {shards}, colocate_with => 'none')"
            ),
        ),
        Placement::ByLane => (
            format!("distribute {name} by lane, beside {FIRST_BY_LANE}"),
            format!(
                "select create_distributed_table('{name}', 'lane', colocate_with => '{FIRST_BY_LANE}')"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The catalogue of a database that was just migrated.
    fn migrated() -> Catalogue {
        let keys = DISTRIBUTED_TABLES.iter().flat_map(|table| {
            let name = |key: &super::super::distribution::ForeignKey| {
                (table.name.to_owned(), key.name.to_owned())
            };
            table.foreign_keys.iter().map(name)
        });
        Catalogue {
            triggers: BTreeSet::from([("tenants".to_owned(), "audit_change".to_owned())]),
            foreign_keys: keys.collect(),
            ..Catalogue::default()
        }
    }

    #[test]
    fn every_foreign_key_is_dropped_before_the_first_table_and_added_after_the_last() {
        let steps = plan_steps(&migrated(), 32);
        let statements: Vec<&str> = steps.iter().map(|step| step.statement.as_str()).collect();
        let position = |part: &str| statements.iter().position(|it| it.contains(part));
        let last = |part: &str| statements.iter().rposition(|it| it.contains(part));
        assert_eq!(position("drop trigger"), Some(0));
        assert!(last("drop constraint") < position("create_reference_table"));
        assert!(last("create_reference_table") < position("create_distributed_table"));
        assert!(last("create_distributed_table") < position("add constraint"));
        assert!(statements.iter().any(|it| it.contains("shard_count => 32")));
    }

    #[test]
    fn a_distributed_database_needs_no_step() {
        let mut catalogue = migrated();
        catalogue.triggers.clear();
        catalogue.placements = DISTRIBUTED_TABLES
            .iter()
            .map(|table| (table.name.to_owned(), table.placement))
            .collect();
        assert_eq!(plan_steps(&catalogue, 32), []);
        // A run was interrupted before the last foreign key.
        let key = ("tenants".to_owned(), "none".to_owned());
        catalogue.foreign_keys.insert(key);
        catalogue
            .foreign_keys
            .retain(|(table, _)| table != "api_keys");
        let steps = plan_steps(&catalogue, 32);
        assert_eq!(steps.len(), 1);
        assert!(steps[0].statement.starts_with("alter table api_keys add"));
    }

    #[test]
    fn rows_that_were_copied_are_removed_from_the_coordinator_at_the_end() {
        let mut catalogue = migrated();
        catalogue.filled = BTreeSet::from(["tenants".to_owned()]);
        let steps = plan_steps(&catalogue, 32);
        assert_eq!(
            steps.last().map(|step| step.statement.as_str()),
            Some("select truncate_local_data_after_distributing_table('tenants')")
        );
    }

    #[test]
    fn all_triggers_are_dropped_in_one_step_and_then_known_to_be_missing() {
        let mut catalogue = migrated();
        assert!(catalogue.is_change_trigger_missing(), "notify_change");
        catalogue.triggers = CONFIGURED_TABLES
            .iter()
            .map(|table| ((*table).to_owned(), "audit_change".to_owned()))
            .chain([("tenants".to_owned(), "notify_change".to_owned())])
            .collect();
        assert!(!catalogue.is_change_trigger_missing());
        let steps = plan_steps(&catalogue, 32);
        let dropping = |step: &&DistributionStep| step.statement.contains("drop trigger");
        assert_eq!(steps.iter().filter(dropping).count(), 1);
        catalogue
            .triggers
            .remove(&("api_keys".to_owned(), "audit_change".to_owned()));
        assert!(catalogue.is_change_trigger_missing());
    }
}
