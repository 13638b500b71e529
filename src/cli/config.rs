//! `attesto config`: the settings, before anything depends on them.

use super::context::{Context, Failure};
use super::serve;
use crate::config::Settings;
use crate::config::shown::{exposed_files, shown};
use crate::server::tls::Pair;

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
    let settings = Settings::parse(&raw).and_then(|settings| {
        // `serve` would not start with it either.
        let now = context.clock.now();
        let pair = settings
            .tls
            .as_ref()
            .map(|files| Pair::read(files, now))
            .transpose();
        match pair {
            Ok(_) => Ok(settings),
            Err(problem) => Err(vec![format!("{problem}.")]),
        }
    });
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
