//! The `attesto` binary.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // Before any secret is read.
    attesto::base::shutdown::disable_core_dumps();
    // One cryptographic backend for all TLS connections. It fails only when one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    attesto::cli::run(std::env::args_os()).await
}
