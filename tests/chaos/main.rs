//! `bin/chaos`: see [`chaos`].

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "mod.rs"]
mod chaos;
/// The lives of purchases.
#[expect(dead_code, reason = "they are played otherwise here")]
#[path = "../histories"]
mod histories {
    pub(crate) mod actor;
    pub(crate) mod life;
}
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
use std::time::Duration;

use clap::{Parser, ValueEnum as _};

/// Kills processes while notifications are pushed, and counts lost notifications.
#[derive(Debug, Parser)]
#[command(name = "bin/chaos", bin_name = "bin/chaos")]
struct Args {
    /// Random seed; the same number makes the same plan
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many notifications are pushed
    #[arg(long, default_value_t = 2000)]
    events: u32,
    /// How many notifications are pushed each second
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// How many replicas serve
    #[arg(long, default_value_t = 2)]
    replicas: usize,
    /// Also stop replicas for longer than a lease, stop the database for ten seconds, and fill its
    /// volume (as root): about five minutes more
    #[arg(long)]
    long: bool,
    /// Instead, let a synchronous standby take over from its primary in each way: about three minutes
    #[arg(long)]
    failover: bool,
    /// Only in this way; may be given several times
    #[arg(long, value_enum, value_name = "HOW", requires = "failover")]
    way: Vec<chaos::failover::Failover>,
    /// Instead, let purchases go on for simulated days while the service, the database and the stores are away, and compare what is
    /// known in the end with the stores' own records: about two minutes for each seed
    #[arg(long, conflicts_with_all = ["long", "failover", "trial"])]
    heal: bool,
    /// How many seeds, counted from the first
    #[arg(long, default_value_t = 1, requires = "heal")]
    count: u64,
    /// For how many simulated days things go wrong; a third of them, and two at most, the service is stopped
    #[arg(long, default_value_t = 9, requires = "heal")]
    days: u32,
    /// Run one measurement instead; may be given several times
    #[arg(long, value_enum, value_name = "WHAT")]
    trial: Vec<chaos::trials::Trial>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let run = chaos::Run {
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000)),
        events: args.events,
        rate: args.rate,
        replicas: args.replicas,
        extent: chaos::Extent {
            kills: 20,
            others: 3,
            away: Duration::from_secs(3),
            long: args.long,
            hurry: false,
        },
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if args.heal {
        return heal(&runtime, run.seed, args.count, args.days);
    }
    if args.failover {
        let ways = match args.way.as_slice() {
            [] => chaos::failover::Failover::value_variants(),
            some => some,
        };
        let pace = chaos::failover::Pace {
            accepted_before: 120,
            away: Duration::from_secs(6),
            is_timed: true,
        };
        return if runtime.block_on(chaos::failover::run(ways, pace, run.seed)) {
            ExitCode::SUCCESS
        } else {
            println!("NOT AS IT SHOULD BE");
            ExitCode::FAILURE
        };
    }
    if !args.trial.is_empty() {
        let mut is_well = true;
        for trial in args.trial {
            is_well &= runtime.block_on(chaos::trials::run(trial, 10_000, run.seed));
        }
        return if is_well {
            ExitCode::SUCCESS
        } else {
            println!("NOT AS IT SHOULD BE");
            ExitCode::FAILURE
        };
    }
    if runtime.block_on(chaos::run(&run)).is_clean() {
        ExitCode::SUCCESS
    } else {
        println!("bin/chaos --seed {} makes the same plan again", run.seed);
        ExitCode::FAILURE
    }
}

fn heal(runtime: &tokio::runtime::Runtime, first: u64, count: u64, days: u32) -> ExitCode {
    let mut is_clean = true;
    for seed in (first..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let extent = chaos::heal::plan::Extent::of_days(days);
        let outcome = runtime.block_on(chaos::heal::run::run(seed, extent));
        println!("{outcome}");
        if !outcome.is_clean() {
            is_clean = false;
            println!("bin/chaos --heal --seed {seed} --days {days} plays the same plan again");
        }
    }
    println!(
        "Of Google's changes only refunds can be listed: messages about others were pushed until they arrived, within a week."
    );
    if is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
