//! `bin/hostile`: crowds of strangers against one server process, and what a good tenant sees meanwhile.
//!
//! Each crowd does one thing that costs the server more than the sender: bodies that do not end, connections that say nothing,
//! heads that do not end, made-up API keys, Google's tokens pushed to made-up tenants, bodies of a million small fields. A
//! tenant asks on beside it, on a connection that is kept and on new ones, and a probe asks `/ready`. Everything is on
//! loopback, so that the crowd and the tenant have one address: the worst case.
//!
//! A run is good when the tenant got no 5xx and no broken connection, `/ready` was 200 throughout, and the process never had
//! more than 256 MiB. Latencies are printed and not judged: they depend on the machine.

#[expect(dead_code, reason = "the crash and the volume are for the chaos suite")]
#[path = "../chaos/postgres.rs"]
mod postgres;

mod crowd;
mod service;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crowd::Crowd;
use service::Service;

/// The most memory that the process may ever have had.
const MAX_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Crowds of strangers against one server process, and what a good tenant sees meanwhile.
#[derive(Debug, Parser)]
#[command(name = "bin/hostile", bin_name = "bin/hostile")]
struct Args {
    /// How long each crowd stays
    #[arg(long, value_name = "N", default_value_t = 12)]
    seconds: u64,
    /// Only these crowds; may be given several times
    #[arg(long, value_enum, value_name = "CROWD")]
    crowd: Vec<Crowd>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    attesto::server::listen::raise_connection_limits();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let is_good = runtime.block_on(run(&args));
    if is_good {
        println!("all goals are met");
        ExitCode::SUCCESS
    } else {
        println!("A GOAL IS MISSED");
        ExitCode::FAILURE
    }
}

async fn run(args: &Args) -> bool {
    let crowds = if args.crowd.is_empty() {
        <Crowd as clap::ValueEnum>::value_variants().to_vec()
    } else {
        args.crowd.clone()
    };
    let service = Service::start().await;
    println!("memory limit of the process: {}", service.memory_limit());
    let mut is_good = true;
    for crowd in crowds {
        let stay = Duration::from_secs(args.seconds);
        let (seen, crowd_seen) = service
            .observe(stay, crowd::run(crowd, &service, stay))
            .await;
        let memory = service.peak_memory_bytes();
        println!("{crowd:?}: the crowd saw {crowd_seen}");
        println!(
            "    the tenant saw {seen}; peak memory {} MiB",
            memory >> 20
        );
        is_good &= seen.is_good() && memory <= MAX_MEMORY_BYTES;
    }
    is_good & service.stop()
}
