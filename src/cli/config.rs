//! `attesto config`: checks the settings without starting the service.

use super::context::{CommandContext, CommandError};
use super::serve;
use crate::config::effective::{READABLE_BY_EVERYONE, effective_settings, secret_files_with_mode};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the settings of `attesto serve`: print each value and its origin (secrets as fingerprints), and all problems.
    /// Accepts the flags of `serve`; opens no connection and changes nothing
    Check(serve::ServeArgs),
}

pub(crate) fn run(command: ConfigCommand, context: &CommandContext) -> Result<(), CommandError> {
    let ConfigCommand::Check(args) = command;
    let lookup = |name: &str| context.environment_variable(name);
    let raw = args.into_raw_settings(context, &lookup);
    let settings = serve::parse_settings(&raw, context.clock.now());
    let rows = effective_settings(&raw, &settings);
    let output = &context.output;
    output.write_rows(&rows, &["name", "value", "origin"], "")?;
    for (name, path) in secret_files_with_mode(&raw, READABLE_BY_EVERYONE) {
        eprintln!(
            "attesto: warning: {name}: every user on this machine can read {}; run chmod o-r on it.",
            path.display()
        );
    }
    settings.map(drop).map_err(CommandError::invalid_settings)
}
