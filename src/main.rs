//! The `attesto` binary.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // Before anything is read that is nobody's business.
    attesto::base::shutdown::disable_core_dumps();
    // One cryptographic backend for everything that speaks TLS, chosen before anything does. It fails only when one
    // was chosen already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    attesto::cli::run(std::env::args_os()).await
}
