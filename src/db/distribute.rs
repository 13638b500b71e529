//! Spreads the tables of a database over the workers of Citus, fresh or filled, in steps of which each checks whether it is done.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::distribution::{DISTRIBUTED_TABLES, DistributedTable, Placement};
use super::{Database, Error, SchemaState, describe_cause};

/// The functions that statements on distributed tables call, so that every worker needs them.
const WORKER_FUNCTIONS: &[&str] = &[
    "attesto_now",
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

/// One step of the distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistributionStep {
    /// What it does, in a line.
    pub description: String,
    /// The statement that does it.
    pub statement: String,
}

/// Why tables were not distributed.
#[derive(Debug, thiserror::Error)]
pub enum DistributionError {
    /// Migrations are missing, or are another release's.
    #[error("the tables are not those of this release: run `attesto migrate` first")]
    TablesOutdated,
    /// The extension is missing.
    #[error(
        "this database has no Citus: have its server load citus (shared_preload_libraries), and run `create extension citus` in this database and in the one of this name on each worker"
    )]
    NoCitus,
    /// No worker can take shards.
    #[error(
        "no worker is known that takes shards: run `select citus_add_node('<host>', <port>)` in this database for each worker"
    )]
    NoWorkers,
    /// The role may not change a table.
    #[error(
        "the database's role does not own the table {0}: run this command with the role that ran `attesto migrate`"
    )]
    NotOwner(String),
    /// Postgres or Citus refused a statement.
    #[error("could not {step}: {}. Every step before it is done: run the command again to go on", describe_cause(.cause))]
    StepFailed {
        /// The description of the step.
        step: String,
        /// The error of the server.
        cause: Error,
    },
    /// Any other error, for example a database that cannot be reached.
    #[error("{}", describe_cause(.0))]
    Database(#[from] Error),
}

/// What the catalogue says about our tables.
#[derive(Debug, Default)]
struct Catalogue {
    /// The names of triggers that Citus refuses, by table.
    triggers: BTreeSet<(String, String)>,
    /// The names of foreign keys, by table.
    foreign_keys: BTreeSet<(String, String)>,
    /// Where the tables are that Citus knows.
    placements: BTreeMap<String, Placement>,
    /// The functions that workers lack, with the types of their parameters.
    functions: Vec<String>,
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

    /// Runs a step of the plan.
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

    /// How many steps are missing where tables are distributed. `None`: they are on one Postgres.
    pub(crate) async fn count_missing_distribution_steps(&self) -> Result<Option<usize>, Error> {
        if !self.is_distributed().await? {
            return Ok(None);
        }
        let mut connection = self.connect_directly("attesto-distribute").await?;
        let catalogue = Catalogue::load(&mut connection).await?;
        let _ = connection.close().await;
        Ok(Some(plan_steps(&catalogue, 1).len()))
    }

    /// A connection without limits of time: a step copies the rows of a table.
    async fn connect_to_distribute(&self) -> Result<PgConnection, DistributionError> {
        match self.load_schema_state().await? {
            SchemaState::UpToDate => {}
            _ => return Err(DistributionError::TablesOutdated),
        }
        let mut connection = self.connect_directly("attesto-distribute").await?;
        let has_citus: bool =
            sqlx::query_scalar("select exists (select from pg_extension where extname = 'citus')")
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
            "select tgrelid::regclass::text, tgname::text from pg_trigger
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
            "select pg_proc.oid::regprocedure::text from pg_proc
             where pronamespace = current_schema()::regnamespace and proname = any($1)
                and not exists (
                    select from pg_dist_object where classid = 'pg_proc'::regclass and objid = pg_proc.oid)
             order by 1",
        )
        .bind(WORKER_FUNCTIONS)
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
        })
    }

    fn is_distributed(&self, table: &str) -> bool {
        self.placements.contains_key(table)
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
/// foreign key to a table that is not distributed.
fn plan_steps(catalogue: &Catalogue, shards: u16) -> Vec<DistributionStep> {
    let mut steps = Vec::new();
    let mut add = |description: String, statement: String| {
        steps.push(DistributionStep {
            description,
            statement,
        });
    };
    for (table, trigger) in &catalogue.triggers {
        add(
            format!("drop the trigger {trigger} of {table}"),
            format!("drop trigger {trigger} on {table}"),
        );
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
            format!("create the function {function} on the workers"),
            format!("select create_distributed_function('{function}')"),
        );
    }
    let undistributed = DISTRIBUTED_TABLES
        .iter()
        .filter(|table| !catalogue.is_distributed(table.name));
    for DistributedTable {
        name, placement, ..
    } in undistributed
    {
        match placement {
            Placement::Reference => add(
                format!("copy {name} to every worker"),
                format!("select create_reference_table('{name}')"),
            ),
            Placement::ByLane if *name == FIRST_BY_LANE => add(
                format!("distribute {name} by lane, in {shards} shards"),
                format!(
                    "select create_distributed_table('{name}', 'lane', shard_count => {shards}, colocate_with => 'none')"
                ),
            ),
            Placement::ByLane => add(
                format!("distribute {name} by lane, beside {FIRST_BY_LANE}"),
                format!(
                    "select create_distributed_table('{name}', 'lane', colocate_with => '{FIRST_BY_LANE}')"
                ),
            ),
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
    steps
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
}
