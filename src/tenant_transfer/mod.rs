//! One tenant, packed into a file and unpacked elsewhere: to move it to another installation, or to restore it alone.
//!
//! Promises: the file is sealed, always; it holds one state of the database; whatever a tenant has is in it or is named here
//! with a reason why not, column by column; what was sealed under one installation's key is sealed anew under the other's; it is
//! unpacked whole or not at all, into rows of that one tenant and of no other; nothing that was taken in and not delivered
//! is left behind.
//!
//! - [`tables`]: what a tenant has, and what of it goes along
//! - [`file_format`]: the lines in the file
//! - [`mod@export`]: packs a tenant
//! - [`mod@import`]: unpacks it
//! - [`error`]: what can go wrong
//! - `store`: the queries

pub mod error;
pub mod export;
pub mod file_format;
pub mod import;
mod store;
pub mod tables;

pub use error::TransferError;
pub use export::{ExportReport, export_tenant};
pub use import::{ImportOptions, ImportReport, import_tenant};
