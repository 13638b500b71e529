//! `attesto tenant`: tenants, their rate limits, and their transfer to another installation.
//!
//! - [`command`]: the list of commands, and those that change a tenant
//! - [`transfer`]: `export`, `import`

mod command;
mod transfer;

pub(super) use command::{TenantCommand, run};
