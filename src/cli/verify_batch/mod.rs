//! `attesto verify batch`: verifies the purchases of a file.
//!
//! Each row gets one answer, that of the verify route. Where a store gives none, the row is asked again; where it gives none for long,
//! the command ends, and goes on from there when it is run again with the same file of answers.
//!
//! - [`mod@run`]: the command
//! - [`rows`]: reads the purchases
//! - [`answers`]: the file of answers

mod answers;
mod rows;
mod run;

pub(crate) use run::{VerifyBatchArgs, run};
