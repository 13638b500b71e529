//! The tree of commands.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::context::{CommandContext, CommandError};
use super::output::OutputFormat;
use super::{
    apple, audit, backup, colon_aliases, completions, config, database, deliveries, dev, doctor,
    encryption, google, health, inspect, jobs, key, migrate, openapi, prune, serve, simulator,
    tail, tenant, verify, webhook,
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
    output: OutputFormat,

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
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the service (what happens without a command)
    Serve(serve::ServeArgs),
    /// Try everything on this machine: a private database, simulated stores, a demo tenant
    Dev(dev::DevArgs),
    /// Bring the database's tables to this release
    Migrate(migrate::MigrateArgs),
    /// Tenants: the teams whose apps Attesto answers for
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// API keys of a tenant
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// A tenant's access to the App Store
    #[command(subcommand)]
    Apple(apple::AppleCommand),
    /// A tenant's access to Google Play
    #[command(subcommand)]
    Google(google::GoogleCommand),
    /// Where a tenant's events are sent
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// Backups of the database, and the proof that they can be restored
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Who else may look into the database
    #[command(subcommand)]
    Db(database::DatabaseCommand),
    /// Whether anything is sent to callbacks at all
    #[command(subcommand)]
    Deliveries(deliveries::DeliveriesCommand),
    /// What was asked, and what operators changed
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Ask one question about a purchase, and hear the answer in words
    #[command(subcommand)]
    Verify(verify::VerifyCommand),
    /// Take something that Apple signed apart: is it believed, and if not, why
    Inspect(inspect::InspectArgs),
    /// Watch what happens to a tenant: verifications, events, deliveries
    Tail(tail::TailArgs),
    /// Ask a running service whether it lives, or whether it can serve
    Health(health::HealthArgs),
    /// Look whether this installation is well: exit 0, 1 for what should not stay as it is, 2 for what does not work
    Doctor(doctor::DoctorArgs),
    /// The keys that secrets are sealed with
    #[command(subcommand)]
    Encryption(encryption::EncryptionCommand),
    /// The settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// What runs periodically: how it went, and a run of it now
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Remove now what is older than it is to be kept
    Prune(prune::PruneArgs),
    /// Run only the simulated stores
    Simulator(simulator::SimulatorArgs),
    /// Print the description of the HTTP API: the OpenAPI document that a running service answers at /openapi.json
    Openapi,
    /// Print what makes a shell complete these commands
    Completions(completions::CompletionsArgs),
    /// Print the manual
    Man(completions::ManArgs),
}

/// Runs what the arguments ask, program name first; writes results to stdout, what went wrong to stderr, and gives
/// the exit code.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut tree = Cli::command();
    tree.build();
    let arguments = colon_aliases::expand_colon_aliases(arguments, &tree);
    let (cli, command) = match Cli::command()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, command_path(&matches))))
    {
        Ok(parsed) => parsed,
        // Help and the version too arrive as an "error", meant for stdout and with exit code 0.
        Err(error) => {
            let said = error.render().to_string();
            let tellable = colon_aliases::redact_secrets(&said, &arguments);
            // Nobody is left to tell when even this cannot be written.
            let _ = if error.use_stderr() && tellable != said {
                write!(std::io::stderr(), "{tellable}")
            } else {
                error.print()
            };
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let context = CommandContext::new(cli.output, cli.database_url, crate::config::read_env_var)
        .with_command_name(command);
    let outcome = dispatch_command(cli.command, &context).await;
    context.close().await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.lines() {
                eprintln!("attesto: {line}");
            }
            failure.exit_code()
        }
    }
}

/// Which command it is, without its arguments: `key revoke`.
fn command_path(matches: &ArgMatches) -> String {
    let mut words = Vec::new();
    let mut level = matches.subcommand();
    while let Some((word, below)) = level {
        words.push(word);
        level = below.subcommand();
    }
    words.join(" ")
}

async fn dispatch_command(
    command: CliCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        CliCommand::Serve(args) => serve::run(args, context).await,
        CliCommand::Dev(args) => dev::run(args, context).await,
        CliCommand::Migrate(args) => migrate::run(args, context).await,
        CliCommand::Tenant(command) => tenant::run(command, context).await,
        CliCommand::Key(command) => key::run(command, context).await,
        CliCommand::Apple(command) => apple::run(command, context).await,
        CliCommand::Google(command) => google::run(command, context).await,
        CliCommand::Webhook(command) => webhook::run(command, context).await,
        CliCommand::Backup(command) => backup::run(command, context).await,
        CliCommand::Db(command) => database::run(command, context).await,
        CliCommand::Deliveries(command) => deliveries::run(command, context).await,
        CliCommand::Audit(command) => audit::run(command, context).await,
        CliCommand::Verify(command) => verify::run(command, context).await,
        CliCommand::Inspect(args) => inspect::run(args, context),
        CliCommand::Tail(args) => tail::run(args, context).await,
        CliCommand::Health(args) => health::run(args, context).await,
        CliCommand::Doctor(args) => doctor::run(args, context).await,
        CliCommand::Encryption(command) => encryption::run(command, context).await,
        CliCommand::Config(command) => config::run(command, context),
        CliCommand::Jobs(command) => jobs::run(command, context).await,
        CliCommand::Prune(args) => prune::run(args, context).await,
        CliCommand::Simulator(args) => simulator::run(args, context).await,
        CliCommand::Openapi => openapi::run(context),
        CliCommand::Completions(args) => completions::write_completions(&args, Cli::command()),
        CliCommand::Man(args) => completions::write_manual(args, Cli::command()),
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
