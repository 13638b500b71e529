//! The command: asks about each row, and waits where a store wants it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::context::{CommandContext, CommandError};
use super::super::progress::ProgressBar;
use super::super::verify::{VerifyDependencies, rejection_json};
use super::answers::AnswerFile;
use super::rows::{BatchQuestion, BatchRow, RowDefaults, read_rows};
use crate::base::backoff::Backoff;
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::http::{ErrorCode, Problem};
use crate::stores::google;

/// How often a row is asked about before the command ends.
const MAX_TRIES: u32 = 6;
/// How many malformed rows are named.
const MAX_NAMED_PROBLEMS: usize = 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "FILE is JSON lines, or CSV with a header line. Its fields are those of the verify routes: transactionId, signedTransaction or purchaseToken, and environment, refresh, packageName, type, productId, expectedAppUserId. Besides: receipt (an app receipt in base64: the newest transaction in it is asked about) and reference (your own name for the row, which its answer repeats).\n\nExit code 0: every row has an answer, also a negative one.\n\nExamples:\n  attesto verify batch tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E purchases.csv \\\n    --answers-path answers.jsonl\n  attesto verify batch tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E - < purchases.jsonl"
)]
pub(crate) struct VerifyBatchArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// File with the purchases, `-` for standard input
    file: PathBuf,

    /// File to which the answers are appended; rows with an answer in it are not asked again [default: standard output]
    #[arg(long, value_name = "FILE")]
    answers_path: Option<PathBuf>,

    /// Purchases that the stores are asked about in a second at most
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    per_second: u32,

    /// Purchases that the stores are asked about at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    concurrency: u16,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BatchReport {
    /// Rows of the file.
    rows: u64,
    /// Those that had an answer before.
    already_answered: u64,
    valid: u64,
    invalid: u64,
    /// Rows without an answer.
    unanswered: u64,
}

impl BatchReport {
    /// Before any of them has an answer.
    fn of_rows(rows: u64) -> Self {
        Self {
            rows,
            unanswered: rows,
            ..Self::default()
        }
    }
}

/// Why a run ended before the last row.
#[derive(Debug)]
enum BatchEnd {
    /// A row has no answer and gets none.
    Problem {
        line: u64,
        problem: Problem,
    },
    Failed(CommandError),
}

impl From<io::Error> for BatchEnd {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Where the answers go.
trait WriteAnswer {
    fn has_answer(&self, row: &BatchRow) -> Result<bool, CommandError>;
    fn write_answer(&mut self, answer: &Value) -> io::Result<()>;
}

pub(crate) async fn run(
    args: VerifyBatchArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let input = BatchInput::open(&args.file)?;
    let mut sink = AnswerSink::open(args.answers_path.as_deref(), context)?;
    let dependencies = VerifyDependencies::load(context).await?;
    let package_name = google::store::find_credential_summary(&dependencies.database, &args.tenant)
        .await?
        .map(|stored| stored.package_name);
    let defaults = RowDefaults {
        tenant: &args.tenant,
        package_name: package_name.as_deref(),
    };
    // Everything that is wrong with the file is said before a store is asked.
    let row_count = count_rows(&args.file, &input, &defaults, &sink)?;
    let (apple, google) = (
        dependencies.build_apple(context)?,
        dependencies.build_google(context),
    );
    let ask = async |question: BatchQuestion| match question {
        BatchQuestion::Apple(request) => {
            let found = apple.verify_purchase(&args.tenant, &request).await?;
            serde_json::to_value(found).map_err(Problem::internal_error)
        }
        BatchQuestion::Google(request) => {
            let found = google.verify_purchase(&args.tenant, &request).await?;
            serde_json::to_value(found).map_err(Problem::internal_error)
        }
    };
    let (stop, _waiting) = context.cancel_on_signal()?;
    let rows = read_rows(input.reader()?, defaults)?.map(|row| {
        row.map_err(|problem| {
            CommandError::failed(format!(
                "line {} {}: {} was changed meanwhile.",
                problem.line,
                problem.text,
                args.file.display()
            ))
        })
    });
    let bar = ProgressBar::for_output(&context.output);
    let run = BatchRun {
        pace: Pace::new(args.per_second),
        retry_delays: RETRY_DELAYS,
        concurrency: usize::from(args.concurrency),
        stop: &stop,
    };
    let mut report = BatchReport::of_rows(row_count);
    let draw = |report: &BatchReport| {
        bar.draw_progress(report.rows - report.unanswered, report.rows, "rows");
    };
    let ended = run
        .verify_rows(rows, &ask, &mut sink, &mut report, draw)
        .await;
    bar.clear();
    write_report(&args, context, &report)?;
    let missing = report.unanswered;
    let advice = match args.answers_path {
        Some(_) => "Run the command again to go on.",
        None => "With --answers-path it could go on from there.",
    };
    match ended {
        Err(BatchEnd::Failed(error)) => Err(error),
        Err(BatchEnd::Problem { line, problem }) => {
            let why = problem.cause.map_or(problem.message, |cause| cause.text);
            Err(CommandError::failed(format!(
                "{missing} rows have no answer. Line {line}: {}: {why} {advice}",
                problem.code.as_str()
            )))
        }
        Ok(()) if missing > 0 => Err(CommandError::failed(format!(
            "Stopped: {missing} rows have no answer. {advice}"
        ))),
        Ok(()) => Ok(()),
    }
}

/// The report goes to stderr if the answers are on stdout.
fn write_report(
    args: &VerifyBatchArgs,
    context: &CommandContext,
    report: &BatchReport,
) -> io::Result<()> {
    let text = format!(
        "{} rows: {} valid, {} not valid, {} answered before, {} without an answer.",
        report.rows, report.valid, report.invalid, report.already_answered, report.unanswered
    );
    if args.answers_path.is_some() {
        context.output.write_json_or_text(report, &text)
    } else {
        eprintln!("attesto: {text}");
        Ok(())
    }
}

/// The file, or what was read from standard input, which is read twice.
enum BatchInput {
    File(PathBuf),
    Stdin(Vec<u8>),
}

impl BatchInput {
    fn open(path: &Path) -> Result<Self, CommandError> {
        if path == Path::new("-") {
            let mut content = Vec::new();
            io::stdin().lock().read_to_end(&mut content)?;
            return Ok(Self::Stdin(content));
        }
        File::open(path).map_err(|error| {
            CommandError::failed(to_sentence(format!(
                "cannot read {}: {error}",
                path.display()
            )))
        })?;
        Ok(Self::File(path.to_owned()))
    }

    fn reader(&self) -> io::Result<Box<dyn BufRead + '_>> {
        Ok(match self {
            Self::File(path) => Box::new(BufReader::new(File::open(path)?)),
            Self::Stdin(content) => Box::new(Cursor::new(content)),
        })
    }
}

enum AnswerSink<'a> {
    File(AnswerFile, &'a Path),
    Stdout(&'a CommandContext),
}

impl<'a> AnswerSink<'a> {
    fn open(path: Option<&'a Path>, context: &'a CommandContext) -> Result<Self, CommandError> {
        let Some(path) = path else {
            return Ok(Self::Stdout(context));
        };
        let file = AnswerFile::open(path).map_err(|error| {
            CommandError::failed(to_sentence(format!(
                "cannot use {}: {error}",
                path.display()
            )))
        })?;
        Ok(Self::File(file, path))
    }
}

impl WriteAnswer for AnswerSink<'_> {
    fn has_answer(&self, row: &BatchRow) -> Result<bool, CommandError> {
        let Self::File(file, path) = self else {
            return Ok(false);
        };
        file.has_answer(row).map_err(|_| {
            CommandError::usage_error(format!(
                "line {} is another one than when {} was written: give another --answers-path.",
                row.line,
                path.display()
            ))
        })
    }

    fn write_answer(&mut self, answer: &Value) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.append(answer),
            Self::Stdout(context) => context.output.write_raw_text(answer, &answer.to_string()),
        }
    }
}

/// Reads the whole file, and names what is wrong with it. Exit 2.
fn count_rows(
    path: &Path,
    input: &BatchInput,
    defaults: &RowDefaults<'_>,
    sink: &impl WriteAnswer,
) -> Result<u64, CommandError> {
    let (mut rows, mut malformed, mut named) = (0, 0, Vec::new());
    for row in read_rows(input.reader()?, defaults.clone())? {
        rows += 1;
        match row {
            Ok(row) => {
                sink.has_answer(&row)?;
            }
            Err(problem) => {
                malformed += 1;
                if named.len() < MAX_NAMED_PROBLEMS {
                    named.push(format!("  line {} {}", problem.line, problem.text));
                }
            }
        }
    }
    if rows == 0 {
        return Err(CommandError::usage_error(format!(
            "{} has no rows.",
            path.display()
        )));
    }
    if malformed == 0 {
        return Ok(rows);
    }
    if malformed > named.len() {
        named.push(format!("  and {} more", malformed - named.len()));
    }
    Err(CommandError::usage_error(format!(
        "{malformed} of {rows} rows cannot be used, and no store was asked:\n{}",
        named.join("\n")
    )))
}

/// When the stores may be asked next.
struct Pace {
    spacing: Duration,
    next_turn: Mutex<Instant>,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self {
            spacing: Duration::from_secs(1) / per_second,
            next_turn: Mutex::new(Instant::now()),
        }
    }

    /// When one who asks for a turn now may ask the store.
    fn take_turn(&self, now: Instant) -> Instant {
        let mut next = self.next_turn.lock();
        let turn = (*next).max(now);
        *next = turn + self.spacing;
        turn
    }

    /// There are no turns for so long.
    fn pause(&self, now: Instant, delay: Duration) {
        let mut next = self.next_turn.lock();
        *next = (*next).max(now + delay);
    }
}

/// How long a row waits after a store gave no answer.
#[derive(Clone, Copy)]
struct RetryDelays {
    min: Duration,
    max: Duration,
    /// The longest time for which a store's `Retry-After` is waited for.
    max_pause: Duration,
}

const RETRY_DELAYS: RetryDelays = RetryDelays {
    min: Duration::from_secs(1),
    max: Duration::from_mins(1),
    max_pause: Duration::from_mins(10),
};

struct BatchRun<'a> {
    pace: Pace,
    retry_delays: RetryDelays,
    concurrency: usize,
    stop: &'a CancellationToken,
}

impl BatchRun<'_> {
    /// Asks about all rows without an answer, until one gets none. Those that are being asked about then still get theirs. `report`
    /// counts along.
    async fn verify_rows(
        &self,
        rows: impl Iterator<Item = Result<BatchRow, CommandError>>,
        ask: &impl AsyncFn(BatchQuestion) -> Result<Value, Problem>,
        sink: &mut impl WriteAnswer,
        report: &mut BatchReport,
        draw: impl Fn(&BatchReport),
    ) -> Result<(), BatchEnd> {
        let mut rows = rows.fuse();
        let mut asked = stream::FuturesUnordered::new();
        let mut ended = Ok(());
        loop {
            while asked.len() < self.concurrency && ended.is_ok() && !self.stop.is_cancelled() {
                let Some(row) = rows.next() else {
                    break;
                };
                match row.and_then(|row| Ok((sink.has_answer(&row)?, row))) {
                    Ok((false, row)) => asked.push(self.ask_about_row(row, ask)),
                    Ok((true, _)) => {
                        report.already_answered += 1;
                        report.unanswered -= 1;
                    }
                    Err(error) => ended = Err(BatchEnd::Failed(error)),
                }
            }
            let Some(outcome) = asked.next().await else {
                break;
            };
            match outcome {
                RowOutcome::Answered { is_valid, answer } => {
                    sink.write_answer(&answer)?;
                    report.unanswered -= 1;
                    *if is_valid {
                        &mut report.valid
                    } else {
                        &mut report.invalid
                    } += 1;
                }
                RowOutcome::Unanswered { line, problem } => {
                    ended = ended.and(Err(BatchEnd::Problem { line, problem }));
                }
                RowOutcome::Stopped => {}
            }
            draw(report);
        }
        ended
    }

    async fn ask_about_row(
        &self,
        row: BatchRow,
        ask: &impl AsyncFn(BatchQuestion) -> Result<Value, Problem>,
    ) -> RowOutcome {
        let RetryDelays {
            min,
            max,
            max_pause,
        } = self.retry_delays;
        let mut backoff = Backoff::new(min, max);
        let mut tries = 0;
        loop {
            let turn = sleep_until(self.pace.take_turn(Instant::now()));
            if self.stop.run_until_cancelled(turn).await.is_none() {
                return RowOutcome::Stopped;
            }
            let problem = match ask(row.question.clone()).await {
                Ok(answer) => return answer_row(&row, true, answer),
                Err(problem) => problem,
            };
            tries += 1;
            match problem.code {
                ErrorCode::Rejected(_) | ErrorCode::InvalidRequest => {
                    return answer_row(&row, false, rejection_json(problem));
                }
                ErrorCode::RateLimited
                | ErrorCode::AppleApiError
                | ErrorCode::GoogleApiError
                | ErrorCode::Unavailable
                    if tries < MAX_TRIES =>
                {
                    let delay = backoff.next_delay(fastrand::f64());
                    match problem.retry_after {
                        Some(asked_for) => {
                            let pause = asked_for.max(delay).min(max_pause);
                            self.pace.pause(Instant::now(), pause);
                        }
                        None => {
                            let _ = self.stop.run_until_cancelled(sleep(delay)).await;
                        }
                    }
                }
                _ => {
                    let line = row.line;
                    return RowOutcome::Unanswered { line, problem };
                }
            }
        }
    }
}

enum RowOutcome {
    Answered { is_valid: bool, answer: Value },
    Unanswered { line: u64, problem: Problem },
    Stopped,
}

/// The answer of the verify route, after what says which row it is about.
fn answer_row(row: &BatchRow, is_valid: bool, verdict: Value) -> RowOutcome {
    let mut answer = json!({
        "line": row.line,
        "inputHash": row.input_hash,
        "store": row.question.store(),
    });
    if let Some(reference) = &row.reference {
        answer["reference"] = reference.as_str().into();
    }
    if !row.other_transaction_ids.is_empty() {
        answer["otherTransactionIds"] = json!(row.other_transaction_ids);
    }
    if let (Value::Object(answer), Value::Object(verdict)) = (&mut answer, verdict) {
        answer.extend(verdict);
    }
    RowOutcome::Answered { is_valid, answer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    #[derive(Default)]
    struct Collected(Vec<Value>);

    impl WriteAnswer for Collected {
        fn has_answer(&self, _: &BatchRow) -> Result<bool, CommandError> {
            Ok(false)
        }

        fn write_answer(&mut self, answer: &Value) -> io::Result<()> {
            self.0.push(answer.clone());
            Ok(())
        }
    }

    async fn verify(
        rows: u64,
        ask: impl AsyncFn(BatchQuestion) -> Result<Value, Problem>,
    ) -> (Result<(), BatchEnd>, BatchReport, Vec<Value>) {
        let tenant = TenantId::mint(Timestamp::from_millis(1));
        let lines: Vec<_> = (0..rows)
            .map(|id| json!({ "transactionId": id.to_string() }).to_string())
            .collect();
        let text = lines.join("\n");
        let defaults = RowDefaults {
            tenant: &tenant,
            package_name: None,
        };
        let read = read_rows(text.as_bytes(), defaults).unwrap();
        let read = read.map(|row| row.map_err(|problem| CommandError::failed(problem.text)));
        let stop = CancellationToken::new();
        let run = BatchRun {
            pace: Pace::new(1_000_000),
            retry_delays: RetryDelays {
                min: Duration::ZERO,
                max: Duration::ZERO,
                max_pause: Duration::ZERO,
            },
            concurrency: 4,
            stop: &stop,
        };
        let (mut collected, mut report) = (Collected::default(), BatchReport::of_rows(rows));
        let ended = run
            .verify_rows(read, &ask, &mut collected, &mut report, |_| {})
            .await;
        (ended, report, collected.0)
    }

    #[test]
    fn no_more_is_asked_in_a_second_than_allowed() {
        let pace = Pace::new(10);
        let begin = Instant::now();
        let ms = Duration::from_millis;
        let turn = |at| pace.take_turn(begin + ms(at)).duration_since(begin);
        for (at, expected) in [(0, 0), (0, 100), (50, 200), (1000, 1000), (1000, 1100)] {
            assert_eq!(turn(at).as_millis(), expected, "at {at}");
        }
        pace.pause(begin + ms(1000), Duration::from_mins(2));
        for expected in [121_000, 121_100] {
            let turn = pace.take_turn(begin + ms(1000)).duration_since(begin);
            assert_eq!(turn.as_millis(), expected);
        }
    }

    #[tokio::test]
    async fn a_store_that_gives_no_answer_is_asked_again() {
        let calls = std::cell::Cell::new(0);
        let (ended, report, _) = verify(3, async |_| {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 => Err(Problem::new(ErrorCode::RateLimited, "Slow down.")
                    .with_retry_after(Duration::from_mins(2))),
                2 => Err(Problem::new(ErrorCode::AppleApiError, "Away.")),
                3 => Err(Problem::rejection("TRANSACTION_NOT_FOUND", "Gone.")),
                _ => Ok(json!({ "valid": true })),
            }
        })
        .await;
        ended.unwrap();
        assert_eq!((report.valid, report.invalid, calls.get()), (2, 1, 5));
    }

    #[tokio::test]
    async fn the_run_ends_when_a_row_gets_no_answer() {
        for (code, tries) in [
            (ErrorCode::GoogleApiError, MAX_TRIES),
            (ErrorCode::CredentialsMissing, 1),
        ] {
            let calls = std::cell::Cell::new(0);
            let (ended, report, answers) = verify(100, async |question| {
                let BatchQuestion::Apple(request) = question else {
                    unreachable!("no row has a token");
                };
                if request.audit_identifier() != "1" {
                    return Ok(json!({ "valid": true }));
                }
                calls.set(calls.get() + 1);
                Err(Problem::new(code, "No."))
            })
            .await;
            assert!(matches!(ended, Err(BatchEnd::Problem { line: 2, .. })));
            assert_eq!(calls.get(), tries, "{code:?}");
            assert_eq!(report.valid, answers.len() as u64);
            assert_eq!(report.unanswered, 100 - report.valid);
        }
    }
}
