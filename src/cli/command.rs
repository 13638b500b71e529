//! The tree of commands.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::context::{CommandContext, CommandError};
use super::output::OutputFormat;
use super::{
    apple, audit, backup, changes, colon_aliases, completions, config, database, deliveries, dev,
    doctor, encryption, event, google, health, inspect, jobs, key, migrate, openapi, prune,
    receive, refund_question, serve, simulator, subject, tail, tenant, verify, webhook,
};

/// Verify App Store and Google Play purchases, and forward the stores' notifications to your backend
#[derive(Debug, Parser)]
#[command(
    name = "attesto",
    version,
    after_help = "Without a command, attesto runs `serve`. A command of two words can be written with a colon: `attesto key:revoke` is `attesto key revoke`."
)]
pub struct Cli {
    /// Output format: `auto` is a table on a terminal and JSON lines otherwise
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    output: OutputFormat,

    /// Address of the database
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "URL",
        help = "Address of the database: postgres://user:password@host:5432/name [env: DATABASE_URL or DATABASE_URL_FILE]"
    )]
    database_url: Option<String>,

    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the service (the default command)
    #[command(
        after_help = "Examples:\n  attesto serve --embedded-postgres --encryption-key-file key.txt\n  attesto serve --database-url postgres://attesto@db/attesto \\\n    --encryption-key-file key.txt"
    )]
    Serve(serve::ServeArgs),
    /// Try Attesto on this machine: a private database, simulated stores, a demo tenant
    Dev(dev::DevArgs),
    /// Migrate the database's tables to this release
    Migrate(migrate::MigrateArgs),
    /// Manage tenants and their limits
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Manage a tenant's API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Manage a tenant's App Store credentials
    #[command(subcommand)]
    Apple(apple::AppleCommand),
    /// Manage a tenant's Google Play credentials, acknowledge and consume purchases
    #[command(subcommand)]
    Google(google::GoogleCommand),
    /// Manage a tenant's webhook: callback, secrets, events, deliveries
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// Read a tenant's events, as `GET /v1/events` does
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Read what a purchase is worth, as `GET /v1/subjects` does
    #[command(subcommand)]
    Subject(subject::SubjectCommand),
    /// List what the stores ask about refunds, as `GET /v1/refund-questions` does
    #[command(subcommand)]
    RefundQuestion(refund_question::RefundQuestionCommand),
    /// Create, verify and restore backups of the database
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Grant read-only access to the database, and distribute its tables with Citus
    #[command(subcommand)]
    Db(database::DatabaseCommand),
    /// Announce changes that were made in the database by hand
    #[command(subcommand)]
    Changes(changes::ChangesCommand),
    /// Hold and release all deliveries
    #[command(subcommand)]
    Deliveries(deliveries::DeliveriesCommand),
    /// List verifications and operators' changes
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Verify one purchase with a tenant's credentials
    #[command(subcommand)]
    Verify(verify::VerifyCommand),
    /// Decode data that Apple signed, and check its signature
    Inspect(inspect::InspectArgs),
    /// Follow a tenant's verifications, events and deliveries
    Tail(tail::TailArgs),
    /// Check whether a running service is alive, or ready
    Health(health::HealthArgs),
    /// Diagnose this installation: exit 0 for no problem, 1 for warnings, 2 for failures
    Doctor(doctor::DoctorArgs),
    /// Manage the encryption keys
    #[command(subcommand)]
    Encryption(encryption::EncryptionCommand),
    /// Check the settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// List the periodic jobs, or run one now
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Delete the data whose retention period has ended
    Prune(prune::PruneArgs),
    /// Run a callback on this machine that prints the events it gets
    Receive(receive::ReceiveArgs),
    /// Run the simulated stores alone
    Simulator(simulator::SimulatorArgs),
    /// Print the OpenAPI document of the HTTP API, as a service answers it at /openapi.json
    Openapi,
    /// Print a shell's completion script
    Completions(completions::CompletionsArgs),
    /// Print the manual pages
    Man(completions::ManArgs),
}

impl Cli {
    /// The tree of commands that is parsed. A flag that names a file is spelled `--x-file` or `--x-path`; the other spelling is accepted
    /// too, and not shown.
    pub(crate) fn parser() -> Command {
        accept_both_file_spellings(Self::command())
    }
}

fn accept_both_file_spellings(command: Command) -> Command {
    command
        .mut_args(|arg| match arg.get_long().and_then(other_file_spelling) {
            Some(other) => arg.alias(other),
            None => arg,
        })
        .mut_subcommands(accept_both_file_spellings)
}

/// `x-path` for `x-file`, and the reverse.
fn other_file_spelling(flag: &str) -> Option<String> {
    let to_path = flag
        .strip_suffix("-file")
        .map(|name| format!("{name}-path"));
    to_path.or_else(|| {
        flag.strip_suffix("-path")
            .map(|name| format!("{name}-file"))
    })
}

/// Runs the command that the arguments name (the first is the program's name) and returns its exit code. Results go to
/// stdout, error messages to stderr.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut tree = Cli::parser();
    tree.build();
    let arguments = colon_aliases::expand_colon_aliases(arguments, &tree);
    let (cli, command) = match Cli::parser()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, command_path(&matches))))
    {
        Ok(parsed) => parsed,
        // clap returns --help and --version as an "error" too, with exit code 0 and meant for stdout.
        Err(error) => {
            let message = error.render().to_string();
            let redacted = colon_aliases::redact_secrets(&message, &arguments);
            // A failure to write the message cannot be reported either.
            let _ = if error.use_stderr() && redacted != message {
                write!(std::io::stderr(), "{redacted}")
            } else {
                error.print()
            };
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let context = CommandContext::new(cli.output, cli.database_url, crate::config::read_env_var)
        .with_command_name(command);
    let outcome = match dispatch_command(cli.command, &context).await {
        Err(failure) => Err(context.explain_failure(failure).await),
        done => done,
    };
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

/// The command's words without its arguments: `key revoke`.
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
        CliCommand::Event(command) => event::run(command, context).await,
        CliCommand::Subject(command) => subject::run(command, context).await,
        CliCommand::RefundQuestion(command) => refund_question::run(command, context).await,
        CliCommand::Backup(command) => backup::run(command, context).await,
        CliCommand::Db(command) => database::run(command, context).await,
        CliCommand::Changes(command) => changes::run(command, context).await,
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
        CliCommand::Receive(args) => receive::run(args, context).await,
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
    fn clap_accepts_the_tree() {
        Cli::parser().debug_assert();
    }

    /// Every command, with its words.
    fn all_commands(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        found.push((path.to_owned(), command.clone()));
        for below in command.get_subcommands() {
            all_commands(below, &format!("{path} {}", below.get_name()), found);
        }
    }

    #[test]
    fn every_flag_that_names_a_file_has_both_spellings() {
        let mut commands = Vec::new();
        all_commands(&Cli::parser(), "attesto", &mut commands);
        let mut flags = Vec::new();
        for (path, command) in &commands {
            for arg in command.get_arguments() {
                let names = arg.get_long_and_visible_aliases().unwrap_or_default();
                let Some(other) = names.first().and_then(|name| other_file_spelling(name)) else {
                    // A path that has another name is a folder, or the only file of its command.
                    continue;
                };
                assert_eq!(names.len(), 1, "{path}: {names:?}");
                let aliases = arg.get_all_aliases().unwrap_or_default();
                assert_eq!(aliases, [other.as_str()], "{path}");
                flags.push(format!("{path} --{}", names[0]));
            }
        }
        for flag in [
            "attesto serve --encryption-key-file",
            "attesto serve --tls-cert-path",
            "attesto apple set-credentials --key-path",
            "attesto google set-credentials --service-account-path",
            "attesto webhook set-config --secret-path",
            "attesto tenant export --passphrase-path",
            "attesto tenant import --identity-path",
        ] {
            assert!(flags.iter().any(|found| found == flag), "{flag}: {flags:?}");
        }
        // One word for one thing: `-file` is shown only for settings, whose names end in _FILE. `serve` has a flag for each.
        for flag in flags.iter().filter(|flag| flag.ends_with("-file")) {
            let (_, name) = flag.split_once(" --").expect("a flag");
            assert!(flags.contains(&format!("attesto serve --{name}")), "{flag}");
        }
        assert!(flags.len() > 20, "{flags:?}");
    }

    #[test]
    fn the_commands_people_type_most_have_an_example_that_parses() {
        for path in [
            "serve",
            "dev",
            "tenant create",
            "key create",
            "apple set-credentials",
            "google set-credentials",
            "google acknowledge",
            "google consume",
            "webhook set-config",
            "webhook list-events",
            "webhook redeliver",
            "event list",
            "subject show",
            "refund-question list",
            "verify apple",
            "verify google",
            "doctor",
            "receive",
        ] {
            let mut command = Cli::parser();
            command.build();
            let found = path
                .split(' ')
                .try_fold(&mut command, |level, word| level.find_subcommand_mut(word));
            let help = found.expect(path).render_long_help().to_string();
            let (_, examples) = help.split_once("Examples:\n").expect(path);
            assert!(
                examples.lines().all(|line| line.len() < 80),
                "{path}: an example that a terminal of 80 columns would wrap"
            );
            let examples = examples.replace("\\\n", "");
            let lines = examples
                .lines()
                .filter(|line| line.starts_with("  attesto "));
            assert_ne!(lines.clone().count(), 0, "{path}");
            for line in lines {
                assert!(line.starts_with(&format!("  attesto {path}")), "{line}");
                let parsed = Cli::parser().try_get_matches_from(line.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
            }
        }
    }
}
