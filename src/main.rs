//! The `attesto` binary.

use std::pin::Pin;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // Before any secret is read.
    attesto::base::shutdown::disable_core_dumps();
    // One cryptographic backend for all TLS connections. It fails only when one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Boxed, because the compiler makes a copy of all commands for each place in the runtime that polls this future.
    let command: Pin<Box<dyn Future<Output = ExitCode>>> =
        Box::pin(attesto::cli::run(std::env::args_os()));
    command.await
}
