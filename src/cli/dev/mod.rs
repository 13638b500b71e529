//! `attesto dev`: runs everything on this machine to try Attesto, without any setup.
//!
//! It starts a private Postgres, the simulated stores and the service, and creates a demo tenant with a callback. It sends
//! example requests to its service and prints each as a `curl` line that works as printed, with its answer. Then it lets
//! the simulated stores send notifications, and prints the signed events that arrive at the callback.
//!
//! - [`args`]: the command's arguments
//! - [`walkthrough`]: the command itself, step by step
//! - [`environment`]: database, simulated stores, demo tenant and service
//! - [`example_request`]: one request: sent, printed, checked
//! - [`store_events`]: changes at a store, and the events that follow

mod args;
mod environment;
mod example_request;
mod store_events;
mod walkthrough;

pub(crate) use args::DevArgs;
pub(crate) use walkthrough::run;
