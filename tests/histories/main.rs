//! `bin/histories`: see [`histories`].

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the suite runs more of the page's statements")]
#[path = "mod.rs"]
mod histories;
/// What the test suite shares.
#[expect(dead_code, reason = "the suite uses more of it")]
#[path = "../it/world"]
mod world {
    pub(crate) mod attesto;
    pub(crate) mod citus;
    pub(crate) mod folder;
    pub(crate) mod pgbouncer;
    pub(crate) mod postgres;
    pub(crate) mod shell;
    pub(crate) mod wait;
}

use std::process::ExitCode;

use clap::Parser;

use histories::life::Life;

/// Plays lives of purchases on the simulated stores, and checks the receiver of docs/integrate.md against the stores' own records.
#[derive(Debug, Parser)]
#[command(name = "bin/histories", bin_name = "bin/histories")]
struct Args {
    /// Random seed; the same number makes the same lives
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many lives
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// In how many random orders the messages of each life are received, besides the order of their telling and its reverse
    #[arg(long, default_value_t = 6, value_name = "N")]
    orders: usize,
    /// How many servers and databases at the same time
    #[arg(long, default_value_t = 4, value_name = "N")]
    worlds: u64,
    /// Play this one life, and tell its story
    #[arg(long, value_name = "SEED")]
    life: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Some(seed) = args.life {
        println!(
            "{}",
            runtime.block_on(histories::tell(&Life::from_seed(seed)))
        );
        return ExitCode::SUCCESS;
    }
    let run = histories::Run {
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000)),
        count: args.count,
        shuffled: args.orders,
        worlds: args.worlds,
    };
    let tally = runtime.block_on(histories::run(&run));
    let steps = tally.steps.iter();
    let steps: Vec<_> = steps
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    println!("played: {}", steps.join(", "));
    println!("{tally}");
    if tally.is_clean() {
        ExitCode::SUCCESS
    } else {
        println!(
            "bin/histories --seed {} --count {} plays the same lives again",
            run.seed, run.count
        );
        ExitCode::FAILURE
    }
}
