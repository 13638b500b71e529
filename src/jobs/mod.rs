//! What runs periodically: what, how often, and why each may run twice without harm.
//!
//! Promises: a job runs in one process at a time, and in another one when that process dies; every run leaves a row that
//! says how it ended; a process that is asked to stop ends its jobs at their next convenient moment and never waits for
//! more than a few rows. A job that was stopped in the middle is taken up again by the next process that looks.
//!
//! - [`job`]: a job, and when it is due
//! - [`list`]: all of them; a new one is a file here and a line there
//! - [`Tools`]: what they work with
//! - [`scheduler`]: who runs them, and the one way to run one
//! - [`drift`], [`expiry`], [`probe`], [`reseal`], [`retention`], [`statistics`]: what they do

pub mod drift;
pub mod expiry;
pub mod job;
mod job_context;
pub mod job_list;
pub mod probe;
pub mod reseal;
pub mod scheduler;
pub mod statistics;
mod store;

pub use job::Job;
pub use job_context::JobContext;
pub use job_list::{JOB_NAMES, all_jobs};
pub use scheduler::{JobOutcome, JobRun, JobRunError, JobScheduler, run_job_now};
pub use store::{JobHealth, LastJobRun, list_job_health, list_last_runs};
