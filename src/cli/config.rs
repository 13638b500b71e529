//! `attesto config`: the settings, before anything depends on them.

use super::context::{CommandContext, CommandError};
use super::serve;
use crate::config::effective::{effective_settings, world_readable_files};

/// The commands of `attesto config`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every setting as `attesto serve` would take it, secrets by their fingerprint only, and everything that is wrong
    /// with them. Takes the flags of `serve`; asks nobody and changes nothing
    Check(serve::ServeArgs),
}

/// Runs it.
pub(crate) fn run(command: ConfigCommand, context: &CommandContext) -> Result<(), CommandError> {
    let ConfigCommand::Check(args) = command;
    let lookup = |name: &str| context.environment_variable(name);
    let raw = args.into_raw_settings(context, &lookup);
    let settings = serve::parse_settings(&raw, context.clock.now());
    let rows = effective_settings(&raw, &settings);
    let output = &context.output;
    output.write_rows(&rows, &["name", "value", "origin"], "")?;
    for (name, path) in world_readable_files(&raw) {
        eprintln!(
            "attesto: warning: {name}: everybody on this machine may read {}: chmod o-r it.",
            path.display()
        );
    }
    settings.map(drop).map_err(CommandError::invalid_settings)
}
