//! Real processes on a real database, killed at random while notifications pour in. `bin/chaos`
//!
//! Replicas of `attesto serve` share one Postgres. Notifications are pushed as Pub/Sub and Apple push them: to any
//! replica, again and again until one says 200. Meanwhile replicas are killed, told to end and stopped past their
//! leases, database sessions are terminated and the database itself crashes. Receivers remember what they were sent.
//!
//! Afterwards every event that was accepted must have arrived. The words are those of Jepsen's checker for queues:
//!
//! - *lost*: accepted, and not delivered in the end
//! - *unexpected*: delivered, and never accepted
//! - *duplicated*: answered with 2xx more than once; each must be explained by an attempt that was cut off
//! - *recovered*: accepted only when it was pushed again, after an error or no answer
//!
//! Exit code 1 on anything lost or unexpected, on a signature that does not verify, and on a duplicate that nothing
//! explains.

mod judge;
mod plan;
mod postgres;
mod pusher;
mod receivers;
mod replica;
mod stage;

use std::process::ExitCode;

use clap::Parser;

/// Kills what it can while notifications pour in, and counts what was lost.
#[derive(Debug, Parser)]
#[command(name = "bin/chaos", no_binary_name = false)]
struct Args {
    /// Where chance begins; the same number makes the same plan
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many notifications are pushed
    #[arg(long, default_value_t = 2000)]
    events: u32,
    /// How many notifications are pushed each second
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// How many processes serve
    #[arg(long, default_value_t = 2)]
    replicas: usize,
    /// Also stop processes for longer than a lease, and the database for ten seconds: some five minutes more
    #[arg(long)]
    long: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> ExitCode {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!(
        "seed {seed}: {} notifications at {}/s to {} replicas{}",
        args.events,
        args.rate,
        args.replicas,
        if args.long { ", the long way" } else { "" }
    );
    let mut stage = stage::Stage::set(args.replicas).await;
    let faults = plan::plan(seed, args.events, args.rate, args.replicas, args.long);
    let accepted = stage.endure(&faults, seed, args.events, args.rate).await;
    let verdict = judge::judge(&mut stage, &accepted, faults.len()).await;
    println!("{verdict}");
    stage.strike().await;
    if verdict.is_clean() {
        ExitCode::SUCCESS
    } else {
        println!("bin/chaos --seed {seed} makes the same plan again");
        ExitCode::FAILURE
    }
}
