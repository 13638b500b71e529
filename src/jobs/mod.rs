//! What runs periodically: how a job is scheduled, and why each may run twice without harm.
//!
//! Promises: a job runs in one process at a time, and in another one when that process dies; every run leaves a row that
//! says how it ended; a process that is asked to stop ends its jobs at their next convenient moment and never waits for
//! more than a few rows. A job that was stopped in the middle is resumed by the next process that looks.
//!
//! - [`job`]: a job, and when it is due
//! - [`JobContext`]: what jobs work with
//! - [`scheduler`]: runs jobs that are due, or one on request
//! - [`probe`], [`reseal`]: two jobs; the others are in `retention` and `checks`, and `app` lists all
//! - `store`: the rows of runs

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
