//! The arguments of `attesto dev`.

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  attesto dev\n  attesto dev --once --fresh")]
pub(crate) struct DevArgs {
    /// Port of the service; when it is in use, the next free one is used and shown
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(super) port: u16,

    /// Port of the simulated stores; when it is in use, the next free one is used and shown
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub(super) simulator_port: u16,

    /// Port of the demo tenant's callback; when it is in use, the next free one is used and shown
    #[arg(long, value_name = "PORT", default_value_t = 8070)]
    pub(super) callback_port: u16,

    /// Send the example requests, check their answers and the events, and exit; 0 only if all were right
    #[arg(long)]
    pub(super) once: bool,

    /// Delete the data of earlier runs first
    #[arg(long)]
    pub(super) fresh: bool,
}
