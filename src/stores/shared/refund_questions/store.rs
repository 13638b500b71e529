//! The table `refund_questions`. Only the database's clock decides what is due.
//!
//! The default answer may have been sent without its outcome being known. The column `leased_until` says so: it is that of
//! `next_check_at` where a process has claimed the question and ended, which a backend's answer never makes equal; and that of
//! `created_at`, which no lease has, where the store gave no answer. The second remains until an answer is known.

use std::time::Duration;

use super::open_questions::{OpenQuestion, OpenQuestionQuery, QuestionCursor};
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::lane::LaneSet;
use crate::crypto::token;
use crate::db::{Database, Error};
use crate::events::EventSource;
use crate::http::{ErrorCode, Problem};
use crate::tenants::lane::lane_column;

/// How long before its deadline a question is answered by the tenant's settings, where half of the time that it has is more.
const MAX_NOTICE: Duration = Duration::from_hours(2);
/// How long a process may take to send an answer. Another one takes the question over then.
const LEASE_TTL: Duration = Duration::from_mins(1);
/// How long after its deadline a question is kept, so that an operator can see what became of it.
const KEPT_AFTER_DEADLINE: Duration = Duration::from_hours(7 * 24);
/// When a backend should repeat an answer that meets another one.
const IN_FLIGHT_RETRY_AFTER: Duration = Duration::from_secs(30);
/// The longest reason of a refusal that is kept, in characters.
const MAX_ERROR_CHARS: usize = 500;

/// What a process takes off the list at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimLimits {
    pub(super) questions: u32,
    pub(super) questions_per_tenant: u32,
}

/// A question before it is listed.
#[derive(Clone, Debug)]
pub(crate) struct NewRefundQuestion {
    pub(crate) source: EventSource,
    /// The store's id of the question.
    pub(crate) question_id: String,
    /// Apple's transaction id, or Google's order id.
    pub(crate) purchase_id: String,
    /// Google's token of the question.
    pub(crate) refund_token: Option<String>,
    /// Where Apple asked.
    pub(crate) environment: Option<&'static str>,
    pub(crate) answer_by: Timestamp,
}

/// What a backend names a question by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefundQuestionKey<'a> {
    pub(crate) source: EventSource,
    pub(crate) purchase_id: &'a str,
    /// `None`: every open question about the purchase.
    pub(crate) refund_token: Option<&'a str>,
}

/// A question that a process has claimed until its lease ends.
#[derive(Clone, Debug)]
pub(crate) struct RefundQuestion {
    pub(crate) tenant: TenantId,
    pub(crate) source: EventSource,
    pub(crate) purchase_id: String,
    pub(crate) refund_token: Option<String>,
    pub(crate) environment: Option<String>,
    pub(super) answer_by: Timestamp,
    /// Whether that time has come.
    pub(super) is_over: bool,
    /// How often it was tried to answer it, this time included.
    pub(super) attempt: u32,
    /// Whether the tenant's default answer was sent before, and what became of that is not known: the process ended while it was sending
    /// it, or the store gave no answer. Not where the answer was not sent, or was refused, or was the backend's.
    pub(crate) may_be_taken: bool,
    question_hash: Vec<u8>,
    /// The end of the lease, which tells this claim from others.
    lease: time::OffsetDateTime,
}

/// When a claimed question is answered again, and why it was not answered now.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryPlan<'a> {
    pub(super) delay: Duration,
    pub(super) error: Option<&'a str>,
    /// Whether the store may have taken the answer that was sent now.
    pub(super) may_be_taken: bool,
}

impl RetryPlan<'_> {
    /// Nothing was sent, for no reason that need be shown.
    pub(super) fn after(delay: Duration) -> Self {
        Self {
            delay,
            error: None,
            may_be_taken: false,
        }
    }
}

/// What became of a question that needs no further work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum RefundOutcome {
    DefaultSent,
    Refused,
    Missed,
}

/// Questions that a backend answers. For [`LEASE_TTL`] no other answer to them is sent; after it they are open again,
/// because the process has ended.
#[derive(Debug)]
pub(crate) struct BegunAnswer {
    tenant: TenantId,
    source: EventSource,
    question_hashes: Vec<Vec<u8>>,
    /// Those of them of which the store may have taken the default answer.
    maybe_taken_hashes: Vec<Vec<u8>>,
    /// The end of the lease, which tells this answer from others.
    lease: time::OffsetDateTime,
}

/// Why a backend's answer is not sent now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginAnswerError {
    /// Another answer is being sent: that of the tenant's settings, or one of the backend's.
    #[error("another answer to the question is being sent")]
    InFlight,
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

impl From<&BeginAnswerError> for Problem {
    fn from(error: &BeginAnswerError) -> Self {
        match error {
            BeginAnswerError::InFlight => Self::new(
                ErrorCode::Unavailable,
                "Another answer to this question is being sent right now. Repeat the request when Retry-After says.",
            )
            .with_retry_after(IN_FLIGHT_RETRY_AFTER),
            BeginAnswerError::Database(error) => error.into(),
        }
    }
}

impl NewRefundQuestion {
    /// Lists the question, unless its deadline is over. One that is listed already stays as it is. `now` is of the clock that the
    /// store's times are compared with.
    pub(crate) async fn list(
        &self,
        database: &Database,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let left = self.answer_by.duration_since(now);
        if left.is_zero() {
            return Ok(());
        }
        let hash = token::sha256(self.question_id.as_bytes());
        let quiet = left.saturating_sub(MAX_NOTICE.min(left / 2));
        sqlx::query!(
            "insert into refund_questions \
                    (lane, tenant_id, source, question_hash, purchase_id, refund_token, environment, answer_by, next_check_at, created_at) \
             select $9, id, $2, $3, $4, $5, $6, \
                    attesto_now() + make_interval(secs => $7), attesto_now() + make_interval(secs => $8), attesto_now() \
               from tenants where id = $1 \
             on conflict do nothing",
            tenant.as_str(),
            self.source.as_str(),
            hash.as_slice(),
            self.purchase_id,
            self.refund_token,
            self.environment,
            left.as_secs_f64(),
            quiet.as_secs_f64(),
            lane_column(tenant),
        )
        .execute(database.pool())
        .await
        .map(drop)
    }
}

impl BegunAnswer {
    /// Sends the backend's answer with `sending`, and keeps other answers away meanwhile. If the store does not take it, the questions are
    /// as before.
    pub(crate) async fn send<T, E: From<BeginAnswerError>>(
        database: &Database,
        tenant: &TenantId,
        key: RefundQuestionKey<'_>,
        sending: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begun = Self::begin(database, tenant, key).await?;
        let sent = sending.await;
        match &sent {
            Ok(_) => begun.finish(database).await?,
            Err(_) => begun.cancel(database).await,
        }
        sent
    }

    async fn begin(
        database: &Database,
        tenant: &TenantId,
        key: RefundQuestionKey<'_>,
    ) -> Result<Self, BeginAnswerError> {
        let found = sqlx::query!(
            r#"
            with open as (
                select question_hash, coalesce(leased_until > attesto_now(), false) as is_leased,
                    coalesce(leased_until in (next_check_at, created_at), false) as may_be_taken
                from refund_questions
                where lane = $6 and tenant_id = $1 and source = $2 and purchase_id = $3 and (outcome is null or outcome = 'refused')
                    and ($4::text is null or refund_token = $4)
                for update
            ), begun as (
                update refund_questions question
                set leased_until = attesto_now() + make_interval(secs => $5),
                    next_check_at = greatest(question.next_check_at, attesto_now() + make_interval(secs => $5 + 1))
                from open
                where question.lane = $6 and question.tenant_id = $1 and question.source = $2 and question.question_hash = open.question_hash
                    and not exists (select from open where is_leased)
                returning question.question_hash, question.leased_until, open.may_be_taken
            )
            select exists (select from open where is_leased) as "is_in_flight!",
                array(select question_hash from begun) as "question_hashes!: Vec<Vec<u8>>",
                array(select question_hash from begun where may_be_taken) as "maybe_taken_hashes!: Vec<Vec<u8>>",
                coalesce((select max(leased_until) from begun), attesto_now()) as "lease!"
            "#,
            tenant.as_str(),
            key.source.as_str(),
            key.purchase_id,
            key.refund_token,
            LEASE_TTL.as_secs_f64(),
            lane_column(tenant),
        )
        .fetch_one(database.pool())
        .await?;
        if found.is_in_flight {
            return Err(BeginAnswerError::InFlight);
        }
        Ok(Self {
            tenant: tenant.clone(),
            source: key.source,
            question_hashes: found.question_hashes,
            maybe_taken_hashes: found.maybe_taken_hashes,
            lease: found.lease,
        })
    }

    /// The store has taken the answer: no other one is sent.
    async fn finish(self, database: &Database) -> Result<(), BeginAnswerError> {
        if self.question_hashes.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "update refund_questions \
                set outcome = 'answered', next_check_at = null, leased_until = null \
              where lane = $5 and tenant_id = $1 and source = $2 and question_hash = any($3) and leased_until = $4",
            self.tenant.as_str(),
            self.source.as_str(),
            &self.question_hashes,
            self.lease,
            lane_column(&self.tenant),
        )
        .execute(database.pool())
        .await?;
        Ok(())
    }

    /// The store has not taken the answer: the questions are as before.
    async fn cancel(self, database: &Database) {
        if self.question_hashes.is_empty() {
            return;
        }
        let released = sqlx::query!(
            "with held as ( \
                 select question_hash, \
                     greatest(answer_by - least(make_interval(secs => $4), (answer_by - created_at) / 2), attesto_now()) as due_at \
                   from refund_questions \
                  where lane = $6 and tenant_id = $1 and source = $2 and question_hash = any($3) and leased_until = $5 \
             ) \
             update refund_questions question \
                set leased_until = case when question.question_hash = any($7) then question.created_at end, \
                    next_check_at = case when question.outcome is null then held.due_at end \
               from held \
              where question.lane = $6 and question.tenant_id = $1 and question.source = $2 \
                and question.question_hash = held.question_hash and question.leased_until = $5",
            self.tenant.as_str(),
            self.source.as_str(),
            &self.question_hashes,
            MAX_NOTICE.as_secs_f64(),
            self.lease,
            lane_column(&self.tenant),
            &self.maybe_taken_hashes,
        )
        .execute(database.pool())
        .await;
        if let Err(error) = released {
            tracing::warn!(
                tenantId = %self.tenant,
                store = self.source.as_str(),
                cause = crate::db::describe_cause(&error),
                causeClass = crate::db::error_class(&error),
                hint = "the store has not taken the backend's answer; another answer can be sent after a minute",
                "refund_question_not_released"
            );
        }
    }
}

/// Takes due questions for [`LEASE_TTL`], those first that are due longest, without those of inactive tenants.
pub(super) async fn claim_due(
    database: &Database,
    limits: ClaimLimits,
) -> Result<Vec<RefundQuestion>, Error> {
    let mut rows = Vec::new();
    let mut claim = database
        .start_claim(LaneSet::ALL, limits.questions as usize)
        .await?;
    while let Some((group, left)) = claim.next(rows.len()) {
        let claimed = sqlx::query!(
        r#"
        with due as (
            select waiting.lane, waiting.tenant_id, waiting.source, waiting.question_hash, waiting.next_check_at,
                row_number() over (partition by waiting.tenant_id order by waiting.next_check_at, waiting.question_hash) as place
            from refund_questions waiting
            join tenants on tenants.id = waiting.tenant_id and tenants.is_active
            where waiting.lane = any($4) and waiting.next_check_at <= attesto_now()
        ), free as (
            select lane, tenant_id, source, question_hash,
                coalesce(leased_until in (next_check_at, created_at), false) as may_be_taken, attesto_now() as now
            from refund_questions
            where (lane, tenant_id, source, question_hash) in (
                    select lane, tenant_id, source, question_hash from due where place <= $2 order by next_check_at limit $1
                )
                and next_check_at <= attesto_now() and outcome is null
                and ($5::int2 is null or lane = $5)
            for update skip locked
        )
        update refund_questions question
        set next_check_at = attesto_now() + make_interval(secs => $3),
            leased_until = attesto_now() + make_interval(secs => $3), attempt_count = attempt_count + 1
        from free
        where (question.lane, question.tenant_id, question.source, question.question_hash)
            = (free.lane, free.tenant_id, free.source, free.question_hash)
            and ($5::int2 is null or question.lane = $5)
        returning question.tenant_id as "tenant!: TenantId", question.source, question.question_hash, question.purchase_id,
            question.refund_token, question.environment, question.answer_by,
            question.answer_by <= free.now as "is_over!", question.attempt_count, question.leased_until as "lease!",
            free.may_be_taken as "may_be_taken!"
        "#,
        left,
        i64::from(limits.questions_per_tenant),
        LEASE_TTL.as_secs_f64(),
        &group.columns(),
        group.only_column(),
    )
    .fetch_all(database.pool())
    .await?;
        rows.extend(claimed);
    }
    let questions = rows.into_iter().map(|row| {
        Ok(RefundQuestion {
            tenant: row.tenant,
            source: parse_source(&row.source)?,
            purchase_id: row.purchase_id,
            refund_token: row.refund_token,
            environment: row.environment,
            answer_by: row.answer_by.into(),
            is_over: row.is_over,
            attempt: row.attempt_count.unsigned_abs(),
            may_be_taken: row.may_be_taken,
            question_hash: row.question_hash,
            lease: row.lease,
        })
    });
    questions.collect()
}

/// Ends the work on a claimed question. Without effect if another process has claimed it since.
pub(super) async fn finish(
    database: &Database,
    question: &RefundQuestion,
    outcome: RefundOutcome,
    error: Option<&str>,
) -> Result<(), Error> {
    sqlx::query!(
        "update refund_questions \
            set outcome = $5, error = coalesce($6, error), next_check_at = null, leased_until = null \
          where lane = $7 and tenant_id = $1 and source = $2 and question_hash = $3 and leased_until = $4",
        question.tenant.as_str(),
        question.source.as_str(),
        question.question_hash,
        question.lease,
        <&str>::from(outcome),
        error.map(shorten),
        lane_column(&question.tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// Puts a claimed question off, at most until its deadline. Without effect if another process has claimed it since.
pub(super) async fn put_off(
    database: &Database,
    question: &RefundQuestion,
    plan: &RetryPlan<'_>,
) -> Result<(), Error> {
    sqlx::query!(
        "update refund_questions \
            set next_check_at = least(attesto_now() + make_interval(secs => $5), greatest(answer_by, attesto_now())), \
                leased_until = case when $7 then created_at end, error = $6 \
          where lane = $8 and tenant_id = $1 and source = $2 and question_hash = $3 and leased_until = $4",
        question.tenant.as_str(),
        question.source.as_str(),
        question.question_hash,
        question.lease,
        plan.delay.as_secs_f64(),
        plan.error.map(shorten),
        question.may_be_taken || plan.may_be_taken,
        lane_column(&question.tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// The questions that still take an answer, at most `limit`, each with the cursor behind it. What the default answer of the
/// tenant's settings was refused for is open too: the backend may answer.
pub(super) async fn list_open(
    database: &Database,
    query: &OpenQuestionQuery,
    limit: usize,
) -> Result<Vec<(QuestionCursor, OpenQuestion)>, Error> {
    let after = query.after.as_ref();
    let rows = sqlx::query!(
        r#"
        select question.tenant_id as "tenant_id!: TenantId", question.source, question.question_hash, question.purchase_id,
            question.refund_token, question.environment, question.created_at, question.answer_by, question.error,
            extract(epoch from question.answer_by - attesto_now())::float8 as "remaining!",
            default_answer.is_set as "is_default_set!",
            case when default_answer.is_set and tenant.is_active and question.outcome is null then question.next_check_at end
                as default_answer_at
        from refund_questions question
        join tenants tenant on tenant.id = question.tenant_id
        cross join lateral (
            select case question.source
                when 'apple' then exists (
                    select from apple_credentials
                    where tenant_id = question.tenant_id and default_consumption is not null)
                else exists (
                    select from google_credentials
                    where tenant_id = question.tenant_id and default_refund_review is not null)
            end as is_set
        ) default_answer
        where question.lane = any($6) and (question.outcome is null or question.outcome = 'refused') and question.answer_by > attesto_now()
            and ($1::text is null or question.tenant_id = $1)
            and ($2::float8 is null or question.answer_by <= attesto_now() + make_interval(secs => $2))
            and ($3::timestamptz is null or (question.answer_by, question.question_hash) > ($3, $4::bytea))
        order by question.answer_by, question.question_hash
        limit $5
        "#,
        query.tenant.as_ref().map(TenantId::as_str),
        query.due_within.map(|within| within.as_secs_f64()),
        after.map(|after| after.answer_by),
        after.map(|after| after.question_hash.as_slice()),
        i64::try_from(limit).unwrap_or(i64::MAX),
        &match &query.tenant {
            Some(tenant) => vec![lane_column(tenant)],
            None => LaneSet::ALL.columns(),
        },
    )
    .fetch_all(database.pool())
    .await?;
    let questions = rows.into_iter().map(|row| {
        let source = parse_source(&row.source)?;
        let (transaction_id, order_id) = match source {
            EventSource::Apple => (Some(row.purchase_id), None),
            EventSource::Google => (None, Some(row.purchase_id)),
        };
        let cursor = QuestionCursor {
            answer_by: row.answer_by,
            question_hash: row.question_hash,
        };
        let question = OpenQuestion {
            tenant_id: row.tenant_id,
            source,
            transaction_id,
            order_id,
            pending_refund_token: row.refund_token,
            environment: row.environment,
            asked_at: row.created_at.into(),
            answer_by: row.answer_by.into(),
            remaining_seconds: Duration::from_secs_f64(row.remaining.max(0.0)).as_secs(),
            has_default_answer: row.is_default_set,
            default_answer_at: row.default_answer_at.map(Timestamp::from),
            default_answer_error: row.error,
        };
        Ok((cursor, question))
    });
    questions.collect()
}

fn parse_source(word: &str) -> Result<EventSource, Error> {
    word.parse()
        .map_err(|error: strum::ParseError| Error::Decode(error.into()))
}

/// Takes off the list what is long over.
pub(super) async fn remove_old(database: &Database) -> Result<(), Error> {
    sqlx::query!(
        "delete from refund_questions where lane = any($2) and answer_by <= attesto_now() - make_interval(secs => $1)",
        KEPT_AFTER_DEADLINE.as_secs_f64(),
        &LaneSet::ALL.columns(),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_ERROR_CHARS).collect()
}
