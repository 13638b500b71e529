//! Periodic jobs and their scheduler.
//!
//! Guarantees: a job runs in one process at a time, and in another one if that process dies. Every run leaves a row
//! that says how it ended. A process that is asked to stop cancels its jobs, which return after a few rows at most. A
//! job that was stopped before its end is resumed by the next process that looks for due jobs. A job may run twice
//! without harm; each one's documentation says why.
//!
//! - [`job`]: a job, and when it is due
//! - [`JobContext`]: the input of jobs
//! - [`scheduler`]: runs due jobs, or one job on command
//! - [`backfill`], [`probe`], [`reseal`]: three jobs; the others are in `retention` and `checks`, and `app` has the list of all
//! - `store`: the SQL of runs

pub(crate) mod backfill;
pub mod job;
mod job_context;
pub(crate) mod probe;
pub(crate) mod reseal;
pub mod scheduler;
mod store;

pub use job::{JOB_NAMES, Job};
pub use job_context::JobContext;
pub use scheduler::{JobOutcome, JobRun, JobRunError, JobScheduler, run_job_now};
pub(crate) use store::{JobHealth, list_job_health};
pub use store::{LastJobRun, list_last_runs};
