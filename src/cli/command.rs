//! The tree of commands.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::context::{Context, Failure};
use super::output::Format;
use super::{
    apple, audit, backup, completions, config, database, deliveries, dev, doctor, encryption,
    google, health, inspect, jobs, key, migrate, openapi, prune, serve, simulator, spelling, tail,
    tenant, verify, webhook,
};

/// Tells a mobile app's backend whether an in-app purchase is real.
#[derive(Debug, Parser)]
#[command(
    name = "attesto",
    version,
    after_help = "Without a command, attesto serves. Every command of two words has a second spelling: `attesto key:revoke` is `attesto key revoke`."
)]
pub struct Cli {
    /// How results are written: `auto` is a table on a terminal and JSON lines anywhere else
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    output: Format,

    /// Where the database is
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "URL",
        help = "Where the database is: postgres://user:password@host:5432/name [env: DATABASE_URL or DATABASE_URL_FILE]"
    )]
    database_url: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (what happens without a command)
    Serve(serve::Args),
    /// Try everything on this machine: a private database, simulated stores, a demo tenant
    Dev(dev::Args),
    /// Bring the database's tables to this release
    Migrate(migrate::Args),
    /// Tenants: the teams whose apps Attesto answers for
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// API keys of a tenant
    #[command(subcommand)]
    Key(key::Command),
    /// A tenant's access to the App Store
    #[command(subcommand)]
    Apple(apple::Command),
    /// A tenant's access to Google Play
    #[command(subcommand)]
    Google(google::Command),
    /// Where a tenant's events are sent
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// Backups of the database, and the proof that they can be restored
    #[command(subcommand)]
    Backup(backup::Command),
    /// Who else may look into the database
    #[command(subcommand)]
    Db(database::Command),
    /// Whether anything is sent to callbacks at all
    #[command(subcommand)]
    Deliveries(deliveries::Command),
    /// What was asked, and what operators changed
    #[command(subcommand)]
    Audit(audit::Command),
    /// Ask one question about a purchase, and hear the answer in words
    #[command(subcommand)]
    Verify(verify::Command),
    /// Take something that Apple signed apart: is it believed, and if not, why
    Inspect(inspect::Args),
    /// Watch what happens to a tenant: verifications, events, deliveries
    Tail(tail::Args),
    /// Ask a running service whether it lives, or whether it can serve
    Health(health::Args),
    /// Look whether this installation is well: exit 0, 1 for what should not stay as it is, 2 for what does not work
    Doctor(doctor::Args),
    /// The keys that secrets are sealed with
    #[command(subcommand)]
    Encryption(encryption::Command),
    /// The settings
    #[command(subcommand)]
    Config(config::Command),
    /// What runs periodically: how it went, and a run of it now
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Remove now what is older than it is to be kept
    Prune(prune::Args),
    /// Run only the simulated stores
    Simulator(simulator::Args),
    /// Print the description of the HTTP API: the OpenAPI document that a running service answers at /openapi.json
    Openapi,
    /// Print what makes a shell complete these commands
    Completions(completions::Completions),
    /// Print the manual
    Man(completions::Manual),
}

/// Runs what the arguments ask, program name first; writes results to stdout, what went wrong to stderr, and gives
/// the exit code.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut tree = Cli::command();
    tree.build();
    let arguments = spelling::nested(arguments, &tree);
    let (cli, command) = match Cli::command()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, words(&matches))))
    {
        Ok(parsed) => parsed,
        // Help and the version too arrive as an "error", meant for stdout and with exit code 0.
        Err(error) => {
            let said = error.render().to_string();
            let tellable = spelling::without_secrets(&said, &arguments);
            // Nobody is left to tell when even this cannot be written.
            let _ = if error.use_stderr() && tellable != said {
                write!(std::io::stderr(), "{tellable}")
            } else {
                error.print()
            };
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let context =
        Context::new(cli.output, cli.database_url, crate::config::environment).running(command);
    let outcome = dispatch(cli.command, &context).await;
    context.close().await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.lines() {
                eprintln!("attesto: {line}");
            }
            failure.code()
        }
    }
}

/// Which command it is, without its arguments: `key revoke`.
fn words(matches: &ArgMatches) -> String {
    let mut words = Vec::new();
    let mut level = matches.subcommand();
    while let Some((word, below)) = level {
        words.push(word);
        level = below.subcommand();
    }
    words.join(" ")
}

async fn dispatch(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args, context).await,
        Command::Dev(args) => dev::run(args, context).await,
        Command::Migrate(args) => migrate::run(args, context).await,
        Command::Tenant(command) => tenant::run(command, context).await,
        Command::Key(command) => key::run(command, context).await,
        Command::Apple(command) => apple::run(command, context).await,
        Command::Google(command) => google::run(command, context).await,
        Command::Webhook(command) => webhook::run(command, context).await,
        Command::Backup(command) => backup::run(command, context).await,
        Command::Db(command) => database::run(command, context).await,
        Command::Deliveries(command) => deliveries::run(command, context).await,
        Command::Audit(command) => audit::run(command, context).await,
        Command::Verify(command) => verify::run(command, context).await,
        Command::Inspect(args) => inspect::run(args, context),
        Command::Tail(args) => tail::run(args, context).await,
        Command::Health(args) => health::run(args, context).await,
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::Encryption(command) => encryption::run(command, context).await,
        Command::Config(command) => config::run(command, context),
        Command::Jobs(command) => jobs::run(command, context).await,
        Command::Prune(args) => prune::run(args, context).await,
        Command::Simulator(args) => simulator::run(args, context).await,
        Command::Openapi => openapi::run(context),
        Command::Completions(args) => completions::completions(&args, Cli::command()),
        Command::Man(args) => completions::manual(args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
