//! Plays one seed: sets everything up, lets it happen, judges, and says what was found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use attesto::base::clock::Timestamp;

use super::judge::{Evidence, Verdict, Wrong, judge};
use super::plan::{Extent, plan};
use super::planted::{SelfCheck, check_judge};
use super::stage::Stage;

/// Purchases whose story is told.
const MAX_STORIES: usize = 3;
/// Wrongs that are named.
const MAX_NAMED: usize = 20;

/// The result of one seed.
pub(crate) struct Outcome {
    seed: u64,
    length: Duration,
    outages: usize,
    events: usize,
    verdict: Verdict,
    self_check: SelfCheck,
    took: Duration,
}

impl Outcome {
    pub(crate) fn is_clean(&self) -> bool {
        let Verdict {
            wrong,
            apple_changes,
            google_changes,
            recovered,
            ..
        } = &self.verdict;
        let has_happened = [apple_changes, google_changes, recovered].map(|count| *count > 0);
        wrong.is_empty() && has_happened == [true; 3] && self.self_check.is_passed()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict {
            wrong,
            apple_changes,
            google_changes,
            recovered,
            uncertain,
            repeated,
            acknowledged,
            answered,
            out_of_reach,
        } = &self.verdict;
        let SelfCheck { made, unnoticed } = &self.self_check;
        writeln!(
            f,
            "  {} events, {repeated} sent twice by an interruption; {uncertain} changes were interrupted while they arrived",
            self.events
        )?;
        writeln!(
            f,
            "  in time: {acknowledged} acknowledgements, {answered} answers about refunds; out of reach: {out_of_reach}"
        )?;
        writeln!(
            f,
            "  faults made on purpose: {made} of {}, found: {}",
            SelfCheck::ALL,
            made - unnoticed.len()
        )?;
        for name in unnoticed {
            writeln!(f, "  NOT FOUND: {name}")?;
        }
        write!(
            f,
            "seed {}: {} changes ({apple_changes} Apple, {google_changes} Google), {recovered} recovered, {} outages in {:.1} days, {} s; wrong = {}",
            self.seed,
            apple_changes + google_changes,
            self.outages,
            self.length.as_secs_f64() / 86_400.0,
            self.took.as_secs(),
            wrong.len()
        )
    }
}

/// Plays a seed, and prints what was wrong.
pub(crate) async fn run(seed: u64, extent: Extent) -> Outcome {
    let begun = Instant::now();
    let planned = plan(seed, extent);
    let mut stage = Stage::set(seed, extent).await;
    stage.play(&planned, extent).await;
    let evidence = Box::pin(stage.collect()).await;
    let verdict = judge(&evidence);
    for Wrong { purchase, what } in verdict.wrong.iter().take(MAX_NAMED) {
        println!("purchase {}: {what}", purchase.as_deref().unwrap_or("-"));
    }
    let told = verdict.wrong.iter().filter_map(|one| one.purchase.as_ref());
    for purchase in told.take(MAX_STORIES) {
        println!("{}", tell(purchase, &evidence));
    }
    Outcome {
        seed,
        length: extent.length,
        outages: planned.len(),
        events: evidence.events.len(),
        self_check: check_judge(&evidence),
        verdict,
        took: begun.elapsed(),
    }
}

/// Everything about one purchase, in the order of time.
fn tell(purchase: &str, evidence: &Evidence) -> String {
    let mut lines: BTreeMap<(Timestamp, usize), String> = BTreeMap::new();
    let mut add = |at: Timestamp, line: String| {
        let number = lines.len();
        lines.insert((at, number), line);
    };
    for (at, outage) in evidence.timeline.tell() {
        add(at, format!("    {outage}"));
    }
    let changes = evidence.changes.iter();
    for change in changes.filter(|change| change.purchase == purchase) {
        add(
            change.made_at,
            format!("{:?}: {} {}", change.store, change.title, change.id),
        );
        for attempt in &change.attempts {
            let line = format!("  {} is sent: {:?}", change.title, attempt.outcome);
            add(attempt.at, line);
        }
    }
    for (id, event) in &evidence.events {
        let is_about = event.body["subject"]["key"] == purchase
            || event.body["data"]["purchaseToken"] == purchase;
        let at = event.stored_at.filter(|_| is_about);
        if let Some(at) = at {
            let state = &event.body["state"];
            add(
                at,
                format!(
                    "  event {id}, {} of {}, recovered {}, sequence {}: {} until {}, as of {}, {}",
                    event.word(),
                    event.happened_at(),
                    event.is_recovered(),
                    event.body["sequence"],
                    state["status"],
                    state["entitledUntil"],
                    state["asOf"],
                    event.body["stateError"]
                ),
            );
        }
    }
    for one in evidence.owed.iter().filter(|one| one.token == purchase) {
        add(
            one.due_at,
            format!("  acknowledgement due: {:?}", one.state),
        );
    }
    let told = lines
        .into_iter()
        .map(|((at, _), line)| format!("{at}  {line}"));
    let told: Vec<String> = told.collect();
    format!("purchase {purchase}\n{}", told.join("\n"))
}
