//! A check: a query, and a judgement of its result.

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, LocalBoxFuture};

use super::check_result::{CheckResult, format_names, pluralize_count, query_failed};
use super::runner::{CheckContext, DatabaseContext};
use crate::db::{Database, Error};

/// The groups, in the order in which `attesto doctor` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::VariantArray)]
pub(super) enum CheckGroup {
    Settings,
    Files,
    Listener,
    Database,
    Keys,
    Processes,
    Tenants,
    Deliveries,
    Drift,
    Logs,
    Stores,
}

impl CheckGroup {
    /// The name in JSON, and the title in text output.
    pub(super) fn name_and_title(self) -> (&'static str, &'static str) {
        match self {
            Self::Settings => ("settings", "Settings"),
            Self::Files => ("files", "Files"),
            Self::Listener => ("listener", "Listener"),
            Self::Database => ("database", "Database"),
            Self::Keys => ("keys", "Encryption keys"),
            Self::Processes => ("processes", "Processes and jobs"),
            Self::Tenants => ("tenants", "Tenants"),
            Self::Deliveries => ("deliveries", "Deliveries"),
            Self::Drift => ("drift", "Configuration drift"),
            Self::Logs => ("logs", "Records and backups"),
            Self::Stores => ("stores", "Stores"),
        }
    }

    /// Whether its checks read the database.
    pub(super) fn needs_database(self) -> bool {
        !matches!(
            self,
            Self::Settings | Self::Files | Self::Listener | Self::Stores
        )
    }
}

/// One check. All of them are in [`all_checks`](super::list::all_checks).
pub(super) struct Check {
    pub(super) group: CheckGroup,
    /// The name in results, such as `deliveries.lag`. It never changes between releases. It is also the name of the
    /// failure if the query fails. A check with several judgements has results with further names.
    pub(super) name: &'static str,
    /// The job that also runs the check, at the interval of that job's setting. `None`: only `attesto doctor` runs it.
    pub(super) job: Option<CheckJob>,
    pub(super) query: CheckQuery,
}

/// How the check appears in a job's summary and in the metrics made from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckJob {
    /// The job's name.
    pub(super) name: &'static str,
    /// The label of the check's count.
    pub(super) label: &'static str,
}

pub(super) enum CheckQuery {
    /// Checks this machine or the stores, and not the database.
    Local(LocalQuery),
    /// Reads the database and judges the result.
    Judged(JudgedQuery),
    /// Counts findings. A count of zero is `ok`.
    Counted {
        query: CountQuery,
        /// The texts with which `attesto doctor` prints the count. `None`: another check prints it.
        wording: Option<CountWording>,
    },
}

/// The future is not `Send`: jobs do not run these checks.
type LocalQuery = for<'a> fn(&'a CheckContext<'_>) -> LocalBoxFuture<'a, Judged>;

type JudgedQuery =
    Box<dyn for<'a> Fn(&'a DatabaseContext) -> BoxFuture<'a, Result<Judged, Error>> + Send + Sync>;

/// A query on the database with a result of type `T`.
pub(super) type Query<T> = for<'a> fn(&'a DatabaseContext) -> BoxFuture<'a, Result<T, Error>>;

pub(super) type CountQuery = Query<CountWithNames>;

/// A count, and the names of the first few items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CountWithNames {
    pub(super) count: i64,
    pub(super) names: Vec<String>,
}

impl CountWithNames {
    pub(super) fn from_names(names: Vec<String>) -> Self {
        Self {
            count: i64::try_from(names.len()).unwrap_or(i64::MAX),
            names,
        }
    }
}

/// The texts of a [`CheckQuery::Counted`]. A count of zero is `ok`, any other a warning.
#[derive(Clone, Copy, Debug)]
pub(super) struct CountWording {
    pub(super) none: &'static str,
    pub(super) one: &'static str,
    pub(super) many: &'static str,
    pub(super) advice: &'static str,
}

/// The results of a check, and their consequences for the other checks of its group.
#[derive(Debug)]
pub(super) enum Judged {
    Results(Vec<CheckResult>),
    /// The group's remaining checks are not run, because they would have nothing to check.
    LastResults(Vec<CheckResult>),
    /// The whole group is skipped. Contains the reason.
    GroupSkipped(&'static str),
}

impl From<CheckResult> for Judged {
    fn from(result: CheckResult) -> Self {
        Self::Results(vec![result])
    }
}

impl<const N: usize> From<[CheckResult; N]> for Judged {
    fn from(results: [CheckResult; N]) -> Self {
        Self::Results(results.into())
    }
}

impl From<Vec<CheckResult>> for Judged {
    fn from(results: Vec<CheckResult>) -> Self {
        Self::Results(results)
    }
}

impl From<Option<CheckResult>> for Judged {
    fn from(result: Option<CheckResult>) -> Self {
        Self::Results(result.into_iter().collect())
    }
}

impl Check {
    pub(super) fn local(group: CheckGroup, name: &'static str, query: LocalQuery) -> Self {
        Self {
            group,
            name,
            job: None,
            query: CheckQuery::Local(query),
        }
    }

    pub(super) fn judged<T: Send + 'static, J: Into<Judged> + 'static>(
        group: CheckGroup,
        name: &'static str,
        query: Query<T>,
        judge: fn(T, &DatabaseContext) -> J,
    ) -> Self {
        let query: JudgedQuery = Box::new(move |context| run_judged(query, judge, context).boxed());
        Self {
            group,
            name,
            job: None,
            query: CheckQuery::Judged(query),
        }
    }

    pub(super) fn counted(
        group: CheckGroup,
        name: &'static str,
        query: CountQuery,
        wording: CountWording,
    ) -> Self {
        let wording = Some(wording);
        Self {
            group,
            name,
            job: None,
            query: CheckQuery::Counted { query, wording },
        }
    }

    /// A count that `attesto doctor` does not print, because another check prints it in more detail.
    pub(super) fn only_counted(group: CheckGroup, name: &'static str, query: CountQuery) -> Self {
        Self {
            group,
            name,
            job: None,
            query: CheckQuery::Counted {
                query,
                wording: None,
            },
        }
    }

    /// Makes the job `name` run the check too.
    pub(super) fn in_job(mut self, name: &'static str, label: &'static str) -> Self {
        self.job = Some(CheckJob { name, label });
        self
    }

    /// The results that `attesto doctor` prints for a check that reads the database.
    pub(super) async fn run(&self, context: &DatabaseContext) -> Judged {
        let judged = match &self.query {
            CheckQuery::Judged(query) => query(context).await,
            CheckQuery::Counted {
                query,
                wording: Some(wording),
            } => {
                let found = query(context).await;
                found.map(|found| judge_count(self.name, &found, wording).into())
            }
            CheckQuery::Local(_) | CheckQuery::Counted { wording: None, .. } => {
                Ok(Judged::Results(Vec::new()))
            }
        };
        match judged {
            Ok(judged) => judged,
            Err(error) => self.explain_failure(&error, &context.database).await.into(),
        }
    }

    async fn explain_failure(&self, error: &Error, database: &Database) -> CheckResult {
        if database.is_refused_by_citus(error).await {
            let reason = "Not checked: Citus does not run this query on distributed tables.";
            return CheckResult::skipped(self.name, reason);
        }
        query_failed(self.name, error)
    }
}

async fn run_judged<T, J: Into<Judged>>(
    query: Query<T>,
    judge: fn(T, &DatabaseContext) -> J,
    context: &DatabaseContext,
) -> Result<Judged, Error> {
    Ok(judge(query(context).await?, context).into())
}

fn judge_count(name: &'static str, found: &CountWithNames, wording: &CountWording) -> CheckResult {
    if found.count == 0 {
        return CheckResult::ok(name, wording.none);
    }
    let what = pluralize_count(found.count, wording.one, wording.many);
    let message = if found.names.is_empty() {
        format!("{what}.")
    } else {
        format!("{what}: {}.", format_names(&found.names, found.count))
    };
    CheckResult::warn(name, message, wording.advice)
}
