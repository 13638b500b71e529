//! `attesto dev`: everything on this machine, to try it. Nothing is set up by hand, nothing is real.
//!
//! It starts a private Postgres, the simulated stores and the service, makes a demo tenant with a callback, asks its own
//! service what a backend asks, and shows each question as a `curl` line that works as printed, with its answer. Then
//! something happens at the stores, and the signed event that comes of it is shown.
//!
//! - [`show`]: the command: one thing after the other
//! - [`stage`]: what has to stand before a question can be asked
//! - [`question`]: one question: asked, printed, judged
//! - [`callback`]: the demo tenant's callback
//! - [`happening`]: something that happens at a store, and the event it becomes

mod args;
mod demo_callback;
mod environment;
mod example_request;
mod store_events;
mod walkthrough;

pub(crate) use args::DevArgs;
pub(crate) use walkthrough::run;
