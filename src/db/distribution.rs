//! Tables that Citus spreads over several servers: which tables are where, and whether this database has them so.
//!
//! A table that grows is distributed by its column `lane`, so that all rows of a tenant are on one worker. A small table that
//! statements on those join is a reference table, a copy of which every worker has. All others stay on the coordinator.

use super::{Database, Error, is_unsupported};
use crate::base::lane::{Lane, LaneSet};

/// A foreign key of a distributed table, with all that is needed to drop it and to add it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint as the migrations name it. In an error of a worker, `_` and the number of the shard follow.
    pub name: &'static str,
    /// The referenced table, which must be in [`DISTRIBUTED_TABLES`] itself, before this one.
    pub target: &'static str,
    /// What follows `add constraint <name>`, exactly as `pg_get_constraintdef` shows it.
    pub definition: &'static str,
}

/// How Citus places the rows of a table on the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Every worker has a copy.
    Reference,
    /// Each worker has the rows of some lanes.
    ByLane,
}

/// A table of the migrations that is not only on the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DistributedTable {
    /// Without a schema: the table is found by the search path, and the name needs no quotes.
    pub name: &'static str,
    /// By lane exactly if the table has the column `lane`.
    pub placement: Placement,
    /// Its foreign keys, which are added when all tables are distributed.
    pub foreign_keys: &'static [ForeignKey],
}

/// A table whose only foreign key is the one to its tenant.
macro_rules! of_tenant {
    ($name:literal, $placement:ident) => {
        DistributedTable {
            name: $name,
            placement: Placement::$placement,
            foreign_keys: &[of_tenant!($name)],
        }
    };
    ($name:literal) => {
        ForeignKey {
            name: concat!($name, "_tenant_id_fkey"),
            target: "tenants",
            definition: "FOREIGN KEY (tenant_id) REFERENCES tenants(id)",
        }
    };
}

const fn without_keys(name: &'static str) -> DistributedTable {
    DistributedTable {
        name,
        placement: Placement::Reference,
        foreign_keys: &[],
    }
}

/// In the order in which they are distributed: those that foreign keys lead to come first, and of those by lane the first one
/// decides how many shards all have.
pub const DISTRIBUTED_TABLES: &[DistributedTable] = &[
    without_keys("tenants"),
    of_tenant!("api_keys", Reference),
    of_tenant!("apple_credentials", Reference),
    of_tenant!("google_credentials", Reference),
    of_tenant!("apple_previous_credentials", Reference),
    of_tenant!("google_previous_credentials", Reference),
    of_tenant!("webhook_configs", Reference),
    DistributedTable {
        name: "webhook_previous_secrets",
        placement: Placement::Reference,
        foreign_keys: &[ForeignKey {
            name: "webhook_previous_secrets_tenant_id_callback_fkey",
            target: "webhook_configs",
            definition: "FOREIGN KEY (tenant_id, callback) REFERENCES webhook_configs(tenant_id, callback)",
        }],
    },
    DistributedTable {
        name: "webhook_client_certificates",
        placement: Placement::Reference,
        foreign_keys: &[ForeignKey {
            name: "webhook_client_certificates_tenant_id_callback_fkey",
            target: "webhook_configs",
            definition: "FOREIGN KEY (tenant_id, callback) REFERENCES webhook_configs(tenant_id, callback)",
        }],
    },
    of_tenant!("webhook_allowed_networks", Reference),
    of_tenant!("first_seen_keys", Reference),
    of_tenant!("callback_probes", Reference),
    of_tenant!("apple_test_notifications", Reference),
    without_keys("delivery_holds"),
    without_keys("pruned_events"),
    of_tenant!("webhook_events", ByLane),
    of_tenant!("subjects", ByLane),
    DistributedTable {
        name: "unresolved_states",
        placement: Placement::ByLane,
        foreign_keys: &[
            of_tenant!("unresolved_states"),
            ForeignKey {
                name: "unresolved_states_lane_event_id_fkey",
                target: "webhook_events",
                definition: "FOREIGN KEY (lane, event_id) REFERENCES webhook_events(lane, id) ON DELETE CASCADE",
            },
        ],
    },
    of_tenant!("event_feeds", ByLane),
    DistributedTable {
        name: "webhook_deliveries",
        placement: Placement::ByLane,
        foreign_keys: &[
            of_tenant!("webhook_deliveries"),
            ForeignKey {
                name: "webhook_deliveries_lane_event_id_fkey",
                target: "webhook_events",
                definition: "FOREIGN KEY (lane, event_id) REFERENCES webhook_events(lane, id)",
            },
        ],
    },
    of_tenant!("webhook_health", ByLane),
    of_tenant!("webhook_redeliveries", ByLane),
    of_tenant!("purchase_links", ByLane),
    of_tenant!("owed_acknowledgements", ByLane),
    of_tenant!("refund_questions", ByLane),
    of_tenant!("voided_purchases", ByLane),
    of_tenant!("google_voided_reads", ByLane),
    of_tenant!("apple_history_reads", ByLane),
    of_tenant!("first_seen_purchases", ByLane),
    of_tenant!("validation_audit", ByLane),
];

/// Whether the server has the extension, whether our tables are there, and whether triggers are on them.
const FACTS_SQL: &str = "select exists (select from pg_extension where extname = 'citus'), \
    to_regclass('tenants') is not null and to_regclass('webhook_events') is not null, \
    to_regclass('tenants') is null or exists (select from pg_trigger \
        where tgrelid = to_regclass('tenants') and tgname = 'notify_change')";
/// The catalogue of Citus exists only with the extension.
const IS_DISTRIBUTED_SQL: &str = "select exists (select from pg_dist_partition \
    where logicalrelid = to_regclass('webhook_events') and partmethod = 'h')";

/// What a process reads once about the tables, since processes are stopped while tables are distributed.
#[derive(Clone, Copy, Debug)]
pub(super) struct DistributionFacts {
    is_distributed: bool,
    has_change_triggers: bool,
}

/// The lanes of one statement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneGroup {
    /// What the statement works on.
    pub(crate) lanes: LaneSet,
    /// The only lane of it, on a distributed database. With it as a constant in a statement, Citus sends the statement to the
    /// worker that has the lane.
    pub(crate) only: Option<Lane>,
}

impl LaneGroup {
    /// The numbers of the lanes, as a parameter of a statement.
    pub(crate) fn columns(self) -> Vec<i16> {
        self.lanes.columns()
    }

    /// The number of the only lane, as a parameter of a statement: `($1::int2 is null or lane = $1)`.
    pub(crate) fn only_column(self) -> Option<i16> {
        self.only.map(Lane::column)
    }
}

/// A claim of rows in one statement for each group of lanes.
pub(crate) struct LaneClaim {
    groups: std::vec::IntoIter<LaneGroup>,
    limit: usize,
}

impl LaneClaim {
    /// The lanes of the next statement, and how many rows it may claim. `None`: that is all, or `claimed` rows are enough.
    pub(crate) fn next(&mut self, claimed: usize) -> Option<(LaneGroup, i64)> {
        let left = self.limit.checked_sub(claimed).filter(|left| *left > 0)?;
        let group = self.groups.next()?;
        Some((group, i64::try_from(left).unwrap_or(i64::MAX)))
    }
}

impl Database {
    /// Whether Citus has distributed the tables. Read once in each process: processes are stopped while tables are distributed.
    pub(crate) async fn is_distributed(&self) -> Result<bool, Error> {
        Ok(self.load_distribution_facts().await?.is_distributed)
    }

    /// Whether triggers log and announce changes. They are dropped before the first table is distributed, so that a distribution
    /// that was interrupted has neither. True while there are no tables.
    pub(crate) async fn has_change_triggers(&self) -> Result<bool, Error> {
        Ok(self.load_distribution_facts().await?.has_change_triggers)
    }

    /// Whether an error says that Citus does not run the statement on distributed tables. One Postgres has the same SQLSTATE for
    /// errors of ours.
    pub(crate) async fn is_refused_by_citus(&self, error: &Error) -> bool {
        is_unsupported(error) && self.is_distributed().await.unwrap_or(false)
    }

    async fn load_distribution_facts(&self) -> Result<DistributionFacts, Error> {
        if let Some(known) = self.distribution.get() {
            return Ok(*known);
        }
        let (has_citus, has_tables, has_change_triggers): (bool, bool, bool) =
            sqlx::query_as(FACTS_SQL).fetch_one(self.pool()).await?;
        let is_distributed = has_citus
            && sqlx::query_scalar(IS_DISTRIBUTED_SQL)
                .fetch_one(self.pool())
                .await?;
        let facts = DistributionFacts {
            is_distributed,
            has_change_triggers,
        };
        if has_tables {
            let _ = self.distribution.set(facts);
        }
        Ok(facts)
    }

    /// The lanes in groups of which each is one statement: all at once on one Postgres, one by one on a distributed database.
    pub(crate) async fn group_lanes(&self, lanes: LaneSet) -> Result<Vec<LaneGroup>, Error> {
        if !self.is_distributed().await? {
            return Ok(vec![LaneGroup { lanes, only: None }]);
        }
        let one_by_one = lanes.iter().map(|lane| LaneGroup {
            lanes: LaneSet::from(lane),
            only: Some(lane),
        });
        Ok(one_by_one.collect())
    }

    /// The statements of a claim of at most `limit` rows. They begin with any of the lanes: a claim that ends at its limit must not
    /// take from the same ones each time.
    pub(crate) async fn start_claim(
        &self,
        lanes: LaneSet,
        limit: usize,
    ) -> Result<LaneClaim, Error> {
        let mut groups = self.group_lanes(lanes).await?;
        let first = fastrand::usize(..groups.len().max(1));
        groups.rotate_left(first);
        Ok(LaneClaim {
            groups: groups.into_iter(),
            limit,
        })
    }

    /// Rows in groups of which each is one statement, by their lanes: see [`group_lanes`](Self::group_lanes).
    pub(crate) async fn group_rows<'a, R>(
        &self,
        rows: &'a [R],
        lane: impl Fn(&R) -> Lane,
    ) -> Result<Vec<(LaneGroup, Vec<&'a R>)>, Error> {
        let lanes = rows.iter().map(&lane).collect();
        let groups = self.group_lanes(lanes).await?.into_iter().map(|group| {
            let members = rows.iter().filter(|row| group.lanes.contains(lane(row)));
            (group, members.collect())
        });
        Ok(groups.collect())
    }
}
