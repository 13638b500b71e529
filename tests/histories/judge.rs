//! Whether the receiver of docs/integrate.md is right: for many orders of arrival, with repeats, at every time that matters.

use std::collections::BTreeMap;
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::db::Database;
use fastrand::Rng;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};
use time::OffsetDateTime;

use super::actor::Records;
use super::life::USER;
use super::reference_receiver::PageStatements;
use super::stage::PlayedLife;

const MILLISECOND: Duration = Duration::from_millis(1);
/// Longer than any purchase of a life runs.
const FAR: Duration = Duration::from_hours(24 * 3650);

/// What a message says of a subject, as far as it can be compared.
struct Said {
    key: String,
    subject: usize,
    /// `None` where the message has a null state.
    state: Option<SaidState>,
    user: Option<String>,
    told_at: Timestamp,
}

#[derive(Clone, Debug)]
struct SaidState {
    gate: Gate,
    product_id: Option<String>,
    will_renew: Option<bool>,
    must_be_acknowledged: bool,
    as_of: Timestamp,
    sequence: i64,
    is_of_store: bool,
}

/// Until when a customer is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    Closed,
    Until(Timestamp),
    Open,
}

impl Gate {
    fn new(entitled: bool, until: Option<Timestamp>) -> Self {
        match (entitled, until) {
            (false, _) => Self::Closed,
            (true, Some(until)) => Self::Until(until),
            (true, None) => Self::Open,
        }
    }

    fn is_open(self, at: Timestamp) -> bool {
        match self {
            Self::Closed => false,
            Self::Until(until) => at < until,
            Self::Open => true,
        }
    }
}

/// A row of the receiver after one of the messages.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    entitled: Option<bool>,
    entitled_until: Option<OffsetDateTime>,
}

/// The orders in which a life's messages are received: as they were told, backwards, and shuffled with repeats.
fn orders(count: usize, shuffled: usize, rng: &mut Rng) -> Vec<Vec<usize>> {
    let told: Vec<usize> = (0..count).collect();
    let backwards: Vec<usize> = told.iter().rev().copied().collect();
    let mut all = vec![told.clone(), backwards];
    for _ in 0..shuffled {
        let mut order = told.clone();
        rng.shuffle(&mut order);
        for _ in 0..count / 3 {
            let repeated = order[rng.usize(..order.len())];
            order.insert(rng.usize(..=order.len()), repeated);
        }
        all.push(order);
    }
    all
}

/// Installs the page's receiver, and what plays orders of messages to it.
pub(crate) async fn install(database: &Database, page: &PageStatements) {
    page.create_table(database).await;
    let functions = format!(
        r"
        create function keep_message(text, jsonb) returns void language sql as $page$ {} $page$;

        create function play_orders(store text, messages jsonb[], keys text[], orders int[])
            returns table (place int, entitled boolean, entitled_until timestamptz)
            language plpgsql as $$
        #variable_conflict use_column
        declare
            pick int;
            number int := 0;
        begin
            foreach pick in array orders loop
                if pick = 0 then
                    delete from purchases as kept where kept.subject_key = any (keys);
                    continue;
                end if;
                perform keep_message(store, messages[pick]);
                return query select number, kept.entitled, kept.entitled_until
                    from (values (keys[pick])) as asked (key)
                    left join purchases as kept on kept.subject_key = asked.key;
                number := number + 1;
            end loop;
        end
        $$;
        ",
        page.upsert
    );
    database
        .pool()
        .execute(AssertSqlSafe(functions))
        .await
        .expect("Postgres takes the page's statement");
}

/// What is wrong with a played life, and in how many orders it was received.
pub(crate) async fn judge(
    database: &Database,
    life: &PlayedLife,
    shuffled: usize,
) -> (Vec<String>, usize) {
    let mut wrong = life.complaints.clone();
    let mut said = Vec::new();
    let mut messages = Vec::new();
    for message in &life.messages {
        match read_message(life, message.told_at, &message.body) {
            Ok(Some(one)) => {
                check_message(life, &one, &message.title, &mut wrong);
                said.push(one);
                messages.push(message);
            }
            // About no purchase.
            Ok(None) => {}
            Err(problem) => wrong.push(format!("{}: {problem}", message.title)),
        }
    }
    check_sequences(life, &mut wrong);
    if said.is_empty() {
        check_end(life, &BTreeMap::new(), "without a message", &mut wrong);
        return (wrong, 0);
    }
    let mut rng = Rng::with_seed(life.seed);
    let orders = orders(said.len(), shuffled, &mut rng);
    let mut picks = Vec::new();
    for order in &orders {
        picks.push(0);
        picks.extend(
            order
                .iter()
                .map(|number| i32::try_from(number + 1).unwrap_or(0)),
        );
    }
    let bodies: Vec<&str> = messages
        .iter()
        .map(|message| message.body.as_str())
        .collect();
    let keys: Vec<&str> = said.iter().map(|one| one.key.as_str()).collect();
    let rows: Vec<Row> = sqlx::query_as(
        "select entitled, entitled_until from play_orders($1, $2::text[]::jsonb[], $3, $4) order by place",
    )
    .bind(messages[0].store)
    .bind(&bodies)
    .bind(&keys)
    .bind(&picks)
    .fetch_all(database.pool())
    .await
    .expect("the receiver takes every message");
    let mut gates = rows.into_iter().map(|row| {
        let until = row.entitled_until.map(Timestamp::from);
        Gate::new(row.entitled == Some(true), until)
    });
    for order in &orders {
        let taken: Vec<Gate> = gates.by_ref().take(order.len()).collect();
        if wrong.is_empty() {
            check_order(life, &said, order, &taken, &mut wrong);
        }
    }
    (wrong, orders.len())
}

fn read_message(life: &PlayedLife, told_at: Timestamp, body: &str) -> Result<Option<Said>, String> {
    let body: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
    let Some(key) = body["subject"]["key"].as_str() else {
        return Ok(None);
    };
    let subject = life
        .actor
        .subject_of(key)
        .ok_or_else(|| format!("{key} is no purchase of this life"))?;
    let state = &body["state"];
    let time = |name: &str| state[name].as_str().and_then(Timestamp::parse);
    let state = if state.is_null() {
        None
    } else {
        let entitled = state["entitled"].as_bool().ok_or("no entitled")?;
        let as_of = time("asOf").ok_or("no asOf")?;
        // A signed transaction counts from its purchase on, for the receiver too.
        let purchase = body["transaction"]["purchaseDate"].as_str();
        let is_of_store = state["basis"] == "store";
        let purchase = purchase.and_then(Timestamp::parse).filter(|_| !is_of_store);
        Some(SaidState {
            gate: Gate::new(entitled, time("entitledUntil")),
            product_id: state["productId"].as_str().map(str::to_owned),
            will_renew: state["willRenew"].as_bool(),
            must_be_acknowledged: !state["acknowledgeBy"].is_null(),
            as_of: purchase.map_or(as_of, |purchase| purchase.min(as_of)),
            sequence: body["sequence"].as_i64().unwrap_or(0),
            is_of_store,
        })
    };
    Ok(Some(Said {
        key: key.to_owned(),
        subject,
        state,
        user: body["appUserId"].as_str().map(str::to_owned),
        told_at,
    }))
}

fn records_at(life: &PlayedLife, at: Timestamp) -> &Records {
    let earlier = life.records.iter().rev().find(|(since, _)| *since <= at);
    &earlier.unwrap_or(&life.records[0]).1
}

/// The times from `from` on at which something may change, each with the milliseconds around it.
fn times_that_matter(from: Timestamp, records: &Records, gates: &[Gate]) -> Vec<Timestamp> {
    let ends = gates.iter().filter_map(|gate| match gate {
        Gate::Until(until) => Some(*until),
        Gate::Closed | Gate::Open => None,
    });
    let mut times: Vec<Timestamp> = records
        .ends()
        .into_iter()
        .chain(ends)
        .flat_map(|end| [end.minus(MILLISECOND), end, end.plus(MILLISECOND)])
        .chain([from, from.plus(FAR)])
        .filter(|at| *at >= from)
        .collect();
    times.sort();
    times.dedup();
    times
}

/// A state of the store is right from the time on at which it was told, as long as nothing else happens.
fn check_message(life: &PlayedLife, said: &Said, title: &str, wrong: &mut Vec<String>) {
    let Some(state) = said.state.as_ref().filter(|state| state.is_of_store) else {
        return;
    };
    let records = records_at(life, state.as_of);
    let from = state.as_of.max(said.told_at);
    for at in times_that_matter(from, records, &[state.gate]) {
        let truth = life
            .actor
            .has_access(records, said.subject, state.as_of, at);
        if state.gate.is_open(at) != truth {
            wrong.push(format!(
                "{title}, told at {} and as of {}, says {:?}; at {at} it is {}",
                said.told_at,
                state.as_of,
                state.gate,
                if truth { "open" } else { "closed" }
            ));
            return;
        }
    }
    let in_use = life.actor.product_in_use(records, said.subject, from);
    if state.gate.is_open(from) && in_use.is_some() && state.product_id != in_use {
        wrong.push(format!(
            "{title}, told at {}, names {:?}; in use is {in_use:?}",
            said.told_at, state.product_id
        ));
    }
    check_terms(life, said, state, title, wrong);
}

/// Whether it renews, and whether it must be acknowledged, are as the store's record says; the user is the customer, and is
/// named where the purchase in use names one.
fn check_terms(
    life: &PlayedLife,
    said: &Said,
    state: &SaidState,
    title: &str,
    wrong: &mut Vec<String>,
) {
    let records = records_at(life, state.as_of);
    let from = state.as_of.max(said.told_at);
    if said.user.as_deref().is_some_and(|user| user != USER) {
        wrong.push(format!("{title} names another user: {:?}", said.user));
    }
    let terms = life.actor.terms_in_use(records, said.subject, from);
    let Some(terms) = terms.filter(|_| state.gate.is_open(from)) else {
        return;
    };
    let (renews, acknowledge) = (Some(terms.will_renew), terms.must_be_acknowledged);
    if state.will_renew != renews || state.must_be_acknowledged != acknowledge {
        wrong.push(format!(
            "{title}, told at {}, says that it renews: {:?}, and must be acknowledged: {}; the store says {terms:?}",
            said.told_at, state.will_renew, state.must_be_acknowledged
        ));
    }
    // A purchase that follows another may name no user of its own.
    if life.actor.tokens.len() <= 1 && said.user != terms.user {
        wrong.push(format!(
            "{title} names the user {:?}; the purchase names {:?}",
            said.user, terms.user
        ));
    }
}

/// The events of a subject are numbered from 1 on, without gaps.
fn check_sequences(life: &PlayedLife, wrong: &mut Vec<String>) {
    let mut numbers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for message in &life.messages {
        let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
        if let (Some(key), Some(number)) =
            (body["subject"]["key"].as_str(), body["sequence"].as_i64())
        {
            numbers.entry(key.to_owned()).or_default().push(number);
        }
    }
    for (key, mut found) in numbers {
        found.sort_unstable();
        if !found
            .iter()
            .copied()
            .zip(1..)
            .all(|(found, expected)| found == expected)
        {
            wrong.push(format!("the events of {key} are numbered {found:?}"));
        }
    }
}

/// After each message the gate of its subject is at least as open as the newest state heard so far says, of the store or of a signed
/// transaction that gives access, and closed where that says so and no signed transaction was shown.
fn check_order(
    life: &PlayedLife,
    said: &[Said],
    order: &[usize],
    gates: &[Gate],
    wrong: &mut Vec<String>,
) {
    let mut newest: BTreeMap<&str, (&SaidState, Timestamp)> = BTreeMap::new();
    let mut last: BTreeMap<&str, Gate> = BTreeMap::new();
    let mut has_shown = false;
    for (number, gate) in order.iter().zip(gates) {
        let one = &said[*number];
        last.insert(&one.key, *gate);
        if let Some(state) = &one.state {
            has_shown |= !state.is_of_store;
            let is_newer = newest.get(one.key.as_str()).is_none_or(|(known, _)| {
                (known.as_of, known.sequence) < (state.as_of, state.sequence)
            });
            if is_newer && (state.is_of_store || state.gate != Gate::Closed) {
                newest.insert(&one.key, (state, one.told_at));
            }
        }
        let Some((known, told_at)) = newest.get(one.key.as_str()) else {
            continue;
        };
        let records = records_at(life, known.as_of);
        let from = known.as_of.max(*told_at);
        for at in times_that_matter(from, records, &[*gate]) {
            let truth = life.actor.has_access(records, one.subject, known.as_of, at);
            let is_wrong = gate.is_open(at) != truth && (truth || !has_shown);
            if is_wrong {
                wrong.push(format!(
                    "received in the order {order:?}, the gate is {gate:?} after message {number}, and the newest state, as of {}, is {} at {at}",
                    known.as_of,
                    if truth { "open" } else { "closed" }
                ));
                return;
            }
        }
    }
    check_end(
        life,
        &last,
        &format!("received in the order {order:?}"),
        wrong,
    );
}

/// After everything the customer is let in exactly when the stores' records say so.
fn check_end(
    life: &PlayedLife,
    gates: &BTreeMap<&str, Gate>,
    title: &str,
    wrong: &mut Vec<String>,
) {
    let records = records_at(life, life.end);
    let gate = gates.values().max().copied().unwrap_or(Gate::Closed);
    for at in times_that_matter(life.end, records, &[gate]) {
        let truth = life.actor.has_any_access(records, at);
        if gate.is_open(at) != truth {
            wrong.push(format!(
                "{title}, in the end the gate is {gate:?}; at {at} it is {}",
                if truth { "open" } else { "closed" }
            ));
            return;
        }
    }
}
