//! Exports a tenant to a file and imports it: to move it to another installation, or to restore one tenant.
//!
//! Guarantees: the file is always sealed. It holds the state of one snapshot. Every table of a tenant is exported, or
//! excluded in the code with a reason, and a test checks this for every column. A value that was sealed with a key of
//! one installation is sealed again with the key of the other. An import writes everything or nothing, and only rows of
//! this tenant. Events that were received and not delivered are always exported.
//!
//! - [`tables`]: the tables of a tenant, and which of their rows are exported
//! - [`file_format`]: the lines of the file
//! - [`mod@export`]: exports a tenant
//! - [`mod@import`]: imports a tenant
//! - [`error`]: why an export or import failed
//! - `store`: the SQL

pub mod error;
pub mod export;
pub mod file_format;
pub mod import;
mod store;
pub mod tables;

pub use error::TransferError;
pub use export::{ExportReport, export_tenant};
pub use import::{ImportOptions, ImportReport, import_tenant};
