//! `attesto simulator`: runs the simulated stores alone.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::context::{CommandContext, CommandError};
use crate::base::error::to_sentence;
use crate::simulator::{Simulator, SimulatorOptions};

const ROOT_CERTIFICATE_FILE: &str = "root.pem";

#[derive(Debug, clap::Args)]
pub(crate) struct SimulatorArgs {
    /// Port to listen on; 0 for any free port
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    port: u16,

    /// Address to listen on; every client that reaches it can control the simulated stores
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,

    /// Folder to store keys and purchases in for the next start; the root certificate to trust is written there as
    /// root.pem
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(crate) async fn run(args: SimulatorArgs, context: &CommandContext) -> Result<(), CommandError> {
    let bind = SocketAddr::new(args.bind, args.port);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = args.folder.clone();
    let options = SimulatorOptions {
        bind,
        folder: args.folder,
        ..SimulatorOptions::new(context.clock.clone())
    };
    let simulator = Simulator::start(options).await.map_err(|error| {
        CommandError::failed(match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "port {} is in use; choose another with --port.",
                    bind.port()
                )
            }
            _ => to_sentence(format!("the simulated stores cannot start: {error}")),
        })
    })?;
    if let Some(folder) = folder {
        // For Attesto in another container, which waits for this file. It is no secret.
        std::fs::write(
            folder.join(ROOT_CERTIFICATE_FILE),
            simulator.apple_root_pem(),
        )
        .map_err(|error| {
            CommandError::failed(to_sentence(format!(
                "cannot write {ROOT_CERTIFICATE_FILE} into the folder: {error}"
            )))
        })?;
    }
    let urls = json!({
        "control": simulator.control_url().as_str(),
        "appleProduction": simulator.apple_production_url().as_str(),
        "appleSandbox": simulator.apple_sandbox_url().as_str(),
        "googlePlay": simulator.google_play_url().as_str(),
        "googleToken": simulator.google_token_url().as_str(),
        "googleCerts": simulator.google_jwks_url().as_str(),
    });
    context
        .output
        .write_json_or_text(&urls, &format_introduction(&simulator))?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    simulator.stop().await;
    Ok(())
}

fn format_introduction(simulator: &Simulator) -> String {
    let control = simulator.control_url();
    let mut settings = String::new();
    for (name, value) in simulator.environment_variables() {
        // Writing to a `String` cannot fail.
        let _ = writeln!(settings, "  export {name}={value}");
    }
    format!(
        "The simulated stores are running. They have only the purchases that you create here, and sign them with real signatures.

To list all their operations, as lines to paste:

  curl -s {control}

To use them with Attesto, trust their root certificate and set their addresses:

  curl -s {control}/apple/root.pem -o simulator-root.pem
{settings}
To give a tenant access:

  curl -s {control}/apple/key                            # issuerId, keyId
  curl -s {control}/apple/key.p8 -o simulator.p8
  curl -s {control}/google/service-account.json -o simulator-google.json

To create a purchase:

  curl -s -X POST {control}/apple/transactions
  curl -s -X POST {control}/google/subscriptions

Ctrl-C stops them."
    )
}
