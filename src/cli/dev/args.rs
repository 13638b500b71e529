//! What `attesto dev` is told.

/// The arguments of `attesto dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// The service's port. When it is taken the next free one is used, and said
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(super) port: u16,

    /// The simulated stores' port. When it is taken the next free one is used, and said
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub(super) simulator_port: u16,

    /// The port of the demo tenant's callback. When it is taken the next free one is used, and said
    #[arg(long, value_name = "PORT", default_value_t = 8070)]
    pub(super) callback_port: u16,

    /// Ask the questions, check the answers and the events, and stop: exit code 0 only if every one was right
    #[arg(long)]
    pub(super) once: bool,

    /// Start over: forget the tenant, the purchases and everything else that earlier runs left
    #[arg(long)]
    pub(super) fresh: bool,
}
