//! The processes that serve with this database, and their encryption keys.
//!
//! Guarantees: the other processes know of a process within seconds, and no longer count it when it stops, or 45
//! seconds after it was killed. Before a process seals with a new key, a command can check that every other process can
//! unseal with it.
//!
//! - [`heartbeat`]: each process writes its row in `replicas` regularly
//! - [`Replica`]: a process that serves
//! - [`live_replicas`]: the processes that serve now, and which of them lack a key
//! - [`lane_share`]: which lanes fall to each process that delivers
//! - [`migration_check`]: whether a migration would stop a process that serves
//! - `store`: the SQL

pub mod heartbeat;
pub mod lane_share;
pub mod live_replicas;
pub mod migration_check;
mod replica;
mod store;

pub use heartbeat::{CertificateExpiries, NoticeSource, ReplicaHeartbeat, host_name};
pub use lane_share::LaneShare;
pub use live_replicas::{LiveReplicaCount, LiveReplicas};
pub use migration_check::MigrationBlockedError;
pub use replica::{CertificateValidity, Replica, ReplicaNotices};
pub(crate) use replica::{HEARTBEAT_TIMEOUT, MAX_THROTTLED_TENANTS};
