//! `attesto config`: the settings, before anything depends on them.

use super::context::{Context, Failure};
use super::serve;
use crate::config::shown::{exposed_files, shown};

/// The commands of `attesto config`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print every setting as `attesto serve` would take it, secrets by their fingerprint only, and everything that is wrong
    /// with them. Takes the flags of `serve`; asks nobody and changes nothing
    Check(serve::Args),
}

/// Runs it.
pub fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let Command::Check(args) = command;
    let lookup = |name: &str| context.variable(name);
    let raw = args.raw(context, &lookup);
    let settings = serve::settings(&raw, context.clock.now());
    let rows = shown(&raw, &settings);
    let output = &context.output;
    output.rows(&rows, &["name", "value", "origin"], "")?;
    for (name, path) in exposed_files(&raw) {
        eprintln!(
            "attesto: warning: {name}: everybody on this machine may read {}: chmod o-r it.",
            path.display()
        );
    }
    settings.map(drop).map_err(Failure::settings)
}
