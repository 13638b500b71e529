//! Plays many lives in one world: one server, one database, one clock, a tenant for each life. The lives run at the same time,
//! step by step and notification by notification in the order of the clock.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use attesto::app::App;
use attesto::base::clock::Timestamp;
use attesto::deliveries::body::load_event_body;
use attesto::simulator::Fault;
use attesto::simulator::state::google::ProductChange;
use attesto::stores::shared::state_completer::StateCompleter;
use futures_util::future::join_all;
use serde_json::Value;

use super::actor::{Actor, Question, Records, decode_message};
use super::life::{Action, Arrival, Life, When};
use crate::world::attesto::{Tenant, World, start};
use crate::world::postgres::{move_database_time, take_over_database_time};

/// Lives begin so long after one another.
const BETWEEN_LIVES: Duration = Duration::from_mins(7);
/// A purchase that Google does not know yet.
const UNKNOWN_AFTER_SALE: Duration = Duration::from_millis(300);
/// Rarely, so that a day without answers does not take a thousand rounds.
const COMPLETION_INTERVAL: Duration = Duration::from_mins(20);
/// The notifications of a life that arrive at the same moment, where those of the life do.
const ARRIVES_TOGETHER_WITHIN: Duration = Duration::from_secs(30);
const LONGEST_LIFE: Duration = Duration::from_hours(24 * 365 * 8);
/// The least time between two steps of a life: its steps happen at even milliseconds, what arrives at odd ones.
const TICK: Duration = Duration::from_millis(2);

/// A life that was played.
pub(crate) struct PlayedLife {
    pub(crate) seed: u64,
    pub(crate) actor: Actor,
    /// What the stores' records were, from which time on.
    pub(crate) records: Vec<(Timestamp, Records)>,
    /// What the backend was told, in the order of the telling.
    pub(crate) messages: Vec<Message>,
    pub(crate) end: Timestamp,
    /// The kinds of steps that were possible.
    pub(crate) steps: Vec<String>,
    /// What happened, line by line.
    pub(crate) story: Vec<String>,
    /// What was not answered as it should be.
    pub(crate) complaints: Vec<String>,
}

/// An event as it is delivered, or a verify answer.
pub(crate) struct Message {
    pub(crate) store: &'static str,
    pub(crate) body: String,
    /// When Attesto said it.
    pub(crate) told_at: Timestamp,
    pub(crate) title: String,
}

/// What is due at a time.
#[derive(Clone)]
enum Due {
    Step(usize),
    Apple(String),
    Google {
        id: String,
        token: Option<String>,
    },
    /// States are told that were not known.
    Completion,
}

/// A life while it is played.
struct Playing<'a> {
    life: &'a Life,
    tenant: Tenant,
    app: String,
    played: PlayedLife,
    events: Vec<ToldEvent>,
}

/// An event, when Attesto was told, and the token that the notification was about.
struct ToldEvent {
    id: String,
    told_at: Timestamp,
    token: Option<String>,
}

/// A queue of what is due, by time, and in the order of its adding.
#[derive(Default)]
struct Agenda {
    due: BTreeMap<(Timestamp, u64), (usize, Due)>,
    next: u64,
}

impl Agenda {
    fn add(&mut self, at: Timestamp, life: usize, due: Due) {
        self.due.insert((at, self.next), (life, due));
        self.next += 1;
    }

    fn next(&mut self) -> Option<(Timestamp, usize, Due)> {
        let ((at, _), (life, due)) = self.due.pop_first()?;
        Some((at, life, due))
    }

    /// Takes the notifications of a life that are due before this time.
    fn take_notifications(&mut self, life: usize, before: Timestamp) -> Vec<Due> {
        let taken = self.due.extract_if(..(before, 0), |_, (of, due)| {
            *of == life && matches!(due, Due::Apple(_) | Due::Google { .. })
        });
        taken.map(|(_, (_, due))| due).collect()
    }
}

/// Plays the lives in a world of their own.
pub(crate) struct Stage<'a> {
    world: &'a World,
    agenda: Agenda,
    playing: Vec<Playing<'a>>,
    newest_notification: Option<String>,
    newest_message: Option<String>,
    /// Of the lives whose store is silent, and of those that it knows late.
    silent: BTreeMap<usize, [Fault; 2]>,
    slow: Vec<Fault>,
    completer: StateCompleter,
    next_completion: Option<Timestamp>,
}

impl<'a> Stage<'a> {
    /// In a world whose own processes complete no states.
    pub(crate) async fn play(world: &'a World, lives: &'a [Life]) -> Vec<PlayedLife> {
        let app = App::build(&world.settings, world.database(), &world.clock);
        let completer = app.expect("an app is built").build_state_completer();
        let mut stage = Self {
            completer,
            next_completion: None,
            world,
            agenda: Agenda::default(),
            playing: Vec::new(),
            newest_notification: None,
            newest_message: None,
            silent: BTreeMap::new(),
            slow: Vec::new(),
        };
        take_over_database_time(world.database()).await;
        stage.advance_to(stage.now(), true).await;
        for (number, life) in lives.iter().enumerate() {
            stage.add_life(number, life).await;
        }
        while let Some((at, number, due)) = stage.agenda.next() {
            stage.advance_to(at, matches!(due, Due::Step(_))).await;
            match due {
                Due::Step(step) => stage.take_step(number, step).await,
                notification @ (Due::Apple(_) | Due::Google { .. }) => {
                    let mut together = vec![notification];
                    if stage.playing[number].life.arrives_together {
                        let before = at.plus(ARRIVES_TOGETHER_WITHIN);
                        together.extend(stage.agenda.take_notifications(number, before));
                    }
                    stage.push(number, &together).await;
                }
                Due::Completion => stage.complete_states(number).await,
            }
        }
        stage.finish().await
    }

    fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    /// Moves both clocks at once: what asks for the database's time meanwhile waits.
    async fn advance_to(&self, at: Timestamp, is_step: bool) {
        let mut to = at.max(self.now());
        if (to.as_millis() % 2 == 0) != is_step {
            to = to.plus(Duration::from_millis(1));
        }
        move_database_time(self.world.database(), to, || {
            self.world.clock.advance(to.duration_since(self.now()));
        })
        .await;
    }

    /// Tells the states that can be told now, and notes which.
    async fn tell_late_states(&mut self) {
        while self
            .completer
            .tick()
            .await
            .expect("the database answers")
            .completed
            > 0
        {}
        self.note_late_states().await;
    }

    /// A round of what tells states later, and another one in a minute if something is left.
    async fn complete_states(&mut self, number: usize) {
        self.tell_late_states().await;
        let next = self.now().plus(COMPLETION_INTERVAL);
        let is_planned = self.next_completion.is_some_and(|at| at > self.now());
        if !is_planned && self.count_unresolved().await > 0 {
            self.next_completion = Some(next);
            self.agenda.add(next, number, Due::Completion);
        }
    }

    async fn count_unresolved(&self) -> i64 {
        sqlx::query_scalar("select count(*) from unresolved_states")
            .fetch_one(self.world.database().pool())
            .await
            .expect("the list can be read")
    }

    /// Notes the events `purchase.state` that are new.
    async fn note_late_states(&mut self) {
        let now = self.now();
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "select id, tenant_id, external_id from webhook_events where external_id like 'state:%'",
        )
        .fetch_all(self.world.database().pool())
        .await
        .expect("events can be read");
        for (id, tenant, external_id) in rows {
            let of = external_id.trim_start_matches("state:");
            let mut all = self.playing.iter_mut();
            let Some(playing) = all.find(|one| one.tenant.id.as_str() == tenant) else {
                continue;
            };
            if playing.events.iter().any(|known| known.id == id) {
                continue;
            }
            let token = playing
                .events
                .iter()
                .find(|known| known.id == of)
                .and_then(|known| known.token.clone());
            if let Some(token) = &token {
                playing.played.actor.note_read(token);
            }
            playing.played.end = playing.played.end.max(now);
            playing.events.push(ToldEvent {
                id,
                told_at: now,
                token,
            });
        }
    }

    async fn add_life(&mut self, number: usize, life: &'a Life) {
        let app = format!("com.example.life{number}");
        let tenant = self.world.stranger().await;
        self.world.set_up_app(&tenant, &app).await;
        self.world.send_notifications_to(&tenant, &app);
        if life.is_known_late {
            let fault = Fault {
                app: Some(app.clone()),
                ..Fault::at_place("google/play").reason("purchaseTokenNotFound")
            };
            self.slow.push(fault.until_after_sale(UNKNOWN_AFTER_SALE));
            self.set_faults();
        }
        let begin = self
            .now()
            .plus(BETWEEN_LIVES * u32::try_from(number).unwrap_or(0));
        let first = match life.steps.first().map(|step| step.when) {
            Some(When::After(time)) => begin.plus(time),
            _ => begin,
        };
        self.agenda.add(first, number, Due::Step(0));
        let actor = Actor::new(&app, &self.world.simulator, &self.world.clock);
        self.playing.push(Playing {
            life,
            tenant,
            app,
            played: PlayedLife {
                seed: life.seed,
                actor,
                records: vec![(begin, Records::Nothing)],
                messages: Vec::new(),
                end: begin,
                steps: Vec::new(),
                story: Vec::new(),
                complaints: Vec::new(),
            },
            events: Vec::new(),
        });
    }

    fn set_faults(&self) {
        let simulator = &self.world.simulator;
        simulator.clear_faults();
        for fault in self.slow.iter().chain(self.silent.values().flatten()) {
            simulator.add_fault(fault.clone()).expect("a good fault");
        }
    }

    async fn take_step(&mut self, number: usize, step: usize) {
        let life = self.playing[number].life;
        let Some(taken) = life.steps.get(step) else {
            return;
        };
        let is_done = match &taken.action {
            Action::Silent(true) => {
                let app = Some(self.playing[number].app.clone());
                let google = Fault::at_place("google/play").reason("quotaExceeded");
                let apple = Fault::at_place("apple").error_code(4_290_000);
                let silent = [google, apple].map(|fault| Fault {
                    app: app.clone(),
                    ..fault.times(0)
                });
                self.silent.insert(number, silent);
                self.set_faults();
                true
            }
            Action::Silent(false) => {
                self.silent.remove(&number);
                self.set_faults();
                true
            }
            action => {
                if let Some(question) = self.playing[number].played.actor.question(action) {
                    self.ask(number, question).await;
                    true
                } else {
                    let actor = &mut self.playing[number].played.actor;
                    let is_done = actor.perform(action).is_some();
                    let is_consumed =
                        matches!(action, Action::ProductChange(ProductChange::Consume {}));
                    // No notification tells what the app did itself: its backend asks.
                    let again = actor.question(&Action::PlayVerify { back: 0 });
                    if let Some(question) = again.filter(|_| is_done && is_consumed) {
                        self.ask(number, question).await;
                    }
                    is_done
                }
            }
        };
        let now = self.now();
        let emitted = self.schedule_notifications(number, &taken.arrivals);
        let played = &mut self.playing[number].played;
        if is_done {
            played.records.push((now, played.actor.records()));
            played.steps.push(taken.action.kind());
            let mut entry = format!("{now}  {}", describe(&taken.action));
            for (name, at) in emitted {
                let _ = write!(entry, "; {name} arrives at {at}");
            }
            played.story.push(entry);
        }
        played.end = played.end.max(now);
        if let Some(next) = life.steps.get(step + 1) {
            let end = played.actor.current_end().unwrap_or(now);
            let at = match next.when {
                When::After(time) => now.plus(time),
                When::BeforeEnd(time) => end.minus(time),
                When::AfterEnd(time) => end.plus(time),
            };
            // The certificates of the simulated App Store are valid for ten years.
            if at < start().plus(LONGEST_LIFE) {
                self.agenda
                    .add(at.max(now.plus(TICK)), number, Due::Step(step + 1));
            }
        }
    }

    /// The notifications that a step made: their names, and when each arrives for the first time.
    fn schedule_notifications(
        &mut self,
        number: usize,
        arrivals: &[Arrival; 2],
    ) -> Vec<(String, Timestamp)> {
        let simulator = &self.world.simulator;
        let mut made = Vec::new();
        let newest = self.newest_notification.as_deref();
        for one in simulator.apple().list_notifications_after(newest) {
            self.newest_notification = Some(one.notification_uuid.clone());
            let subtype = one.subtype.as_deref().unwrap_or_default();
            let name = format!("{} {subtype}", one.notification_type);
            made.push((
                name.trim_end().to_owned(),
                Due::Apple(one.notification_uuid),
            ));
        }
        let newest = self.newest_message.as_deref();
        for one in simulator.google().list_messages_after(newest) {
            self.newest_message = Some(one.message_id.clone());
            let content = decode_message(&one.data);
            let block = content.values().find(|value| value.is_object());
            let block = block.cloned().unwrap_or_default();
            let token = block["purchaseToken"].as_str().map(str::to_owned);
            let kind = content.keys().next_back().cloned().unwrap_or_default();
            let name = match block["notificationType"].as_u64() {
                Some(kind) => format!("type {kind}"),
                None => kind,
            };
            let id = one.message_id;
            made.push((name, Due::Google { id, token }));
        }
        let now = self.now();
        let mut emitted = Vec::new();
        for (place, (name, due)) in made.into_iter().enumerate() {
            let arrival = arrivals[place.min(1)];
            let first = now.plus(arrival.after);
            let repeated = arrival.repeated_after.map(|after| first.plus(after));
            for at in std::iter::once(first).chain(repeated) {
                self.agenda.add(at, number, due.clone());
            }
            emitted.push((name, first));
        }
        emitted
    }

    /// Pushes the notifications at the same time.
    async fn push(&mut self, number: usize, notifications: &[Due]) {
        let simulator = &self.world.simulator;
        let pushes = notifications.iter().map(async |due| match due {
            Due::Apple(uuid) => simulator.apple().push_notification(uuid).await,
            Due::Google { id, .. } => simulator.google().push_message(id).await,
            Due::Step(_) | Due::Completion => unreachable!("no notification"),
        });
        let answers = join_all(pushes).await;
        for (due, answer) in notifications.iter().zip(answers) {
            let answer = answer.expect("the notification is known");
            let token = match due {
                Due::Google { token, .. } => token.clone(),
                _ => None,
            };
            if let Some(token) = &token
                && !self.silent.contains_key(&number)
                && !self.is_unknown_yet(number, token)
            {
                self.playing[number].played.actor.note_read(token);
            }
            self.record_push(number, answer.status, &answer.body, token);
        }
        if self.count_unresolved().await > 0 {
            self.complete_states(number).await;
        }
    }

    fn is_unknown_yet(&self, number: usize, token: &str) -> bool {
        let sold = self.world.simulator.google().find_subscription(token);
        let age = sold.map(|sold| self.now().duration_since(sold.start_time));
        self.playing[number].life.is_known_late && age.is_some_and(|age| age < UNKNOWN_AFTER_SALE)
    }

    fn record_push(&mut self, number: usize, status: u16, body: &Value, token: Option<String>) {
        let now = self.now();
        let playing = &mut self.playing[number];
        playing.played.end = playing.played.end.max(now);
        match body["eventId"].as_str() {
            Some(id) if status == 200 => {
                if playing.events.iter().all(|known| known.id != id) {
                    playing.events.push(ToldEvent {
                        id: id.to_owned(),
                        told_at: now,
                        token,
                    });
                }
            }
            _ => {
                let complaint = format!("{now}  a notification was answered with {status}: {body}");
                playing.played.complaints.push(complaint);
            }
        }
    }

    /// Asks as the app's backend does, and keeps a verdict like an event.
    async fn ask(&mut self, number: usize, question: Question) {
        let Question { store, body } = question;
        let playing = &mut self.playing[number];
        let answer = self.world.verify(store, &playing.tenant, &body).await;
        let now = self.world.clock.now();
        let played = &mut playing.played;
        played.end = played.end.max(now);
        if answer.status == 200 && answer.body["valid"] == true {
            if let Some(token) = body["purchaseToken"].as_str() {
                played.actor.note_read(token);
            }
            played.messages.push(Message {
                store,
                body: answer.body.to_string(),
                told_at: now,
                title: format!("the answer to {}", describe_question(&body)),
            });
        } else if answer.status == 500 || answer.status < 200 {
            let complaint = format!("{now}  {body} was answered with {}", answer.status);
            played.complaints.push(complaint);
        }
    }

    /// The stores answer again, and what could not be told is told within a minute; then the events are collected.
    async fn finish(mut self) -> Vec<PlayedLife> {
        self.silent.clear();
        self.slow.clear();
        self.set_faults();
        for _ in 0..2 {
            self.advance_to(self.now().plus(COMPLETION_INTERVAL), false)
                .await;
            self.tell_late_states().await;
        }
        for number in 0..self.playing.len() {
            for (store, body, told_at) in self.load_events(number).await {
                let content: Value = serde_json::from_str(&body).unwrap_or_default();
                let title = format!(
                    "{} ({})",
                    content["event"].as_str().unwrap_or_default(),
                    content["platformEvent"].as_str().unwrap_or_default()
                );
                self.playing[number].played.messages.push(Message {
                    store,
                    body,
                    told_at,
                    title,
                });
            }
            let messages = &mut self.playing[number].played.messages;
            messages.sort_by_key(|message| message.told_at);
        }
        self.playing
            .into_iter()
            .map(|playing| playing.played)
            .collect()
    }

    /// The bodies of a life's events, exactly as they are sent.
    async fn load_events(&self, number: usize) -> Vec<(&'static str, String, Timestamp)> {
        let playing = &self.playing[number];
        let rows: Vec<(String, String)> = sqlx::query_as(
            "select id, source from webhook_events where tenant_id = $1 order by id",
        )
        .bind(playing.tenant.id.as_str())
        .fetch_all(self.world.database().pool())
        .await
        .expect("events can be read");
        let mut events = Vec::new();
        for (id, source) in rows {
            let event = id.parse().expect("an event's id");
            let body = load_event_body(self.world.database(), &playing.tenant.id, &event).await;
            let body = body
                .expect("the body can be read")
                .expect("the event exists");
            let told = playing.events.iter().find(|known| known.id == id);
            let told_at = told.map_or_else(|| self.now(), |known| known.told_at);
            let store = if source == "apple" { "apple" } else { "google" };
            events.push((store, body, told_at));
        }
        events
    }
}

/// A step in one line.
fn describe(action: &Action) -> String {
    match action {
        Action::AppleBuy(new) => format!("buys from the App Store: {}", json(new)),
        Action::AppleChange { back, change } => {
            format!("transaction {back} before the newest: {}", json(change))
        }
        Action::AppleNotify {
            back,
            kind,
            subtype,
            is_bare,
        } => format!(
            "the App Store sends {kind} {} about transaction {back} before the newest{}",
            subtype.unwrap_or_default(),
            if *is_bare { ", without a status" } else { "" }
        ),
        Action::AppleVerify { back, by } => {
            format!("asks about transaction {back} before the newest, by {by:?}")
        }
        Action::PlayBuy(new) => format!("subscribes in Google Play: {}", json(new)),
        Action::PlayChange(change) => format!("subscription: {}", json(change)),
        Action::PlayReplace(by) => format!("replaces the subscription: {}", json(by)),
        Action::PlayDecide { is_paid: true } => "the pending purchase is paid".to_owned(),
        Action::PlayDecide { is_paid: false } => "the pending purchase is declined".to_owned(),
        Action::PlayResubscribe { in_app: true } => "subscribes again in the app".to_owned(),
        Action::PlayResubscribe { in_app: false } => "subscribes again in Google Play".to_owned(),
        Action::PlayNotify(kind) => format!("Google sends type {kind}"),
        Action::PlayVoidEarlier => "Google refunds one payment".to_owned(),
        Action::PlayVerify { back } => format!("asks about token {back} before the newest"),
        Action::ProductBuy(new) => format!("buys in Google Play: {}", json(new)),
        Action::ProductChange(change) => format!("product: {}", json(change)),
        Action::PlayAskRefund => "Google asks about a refund".to_owned(),
        Action::PlayForgetEnded => "Google knows the ended purchases no more".to_owned(),
        Action::Silent(true) => "the stores answer no more".to_owned(),
        Action::Silent(false) => "the stores answer again".to_owned(),
    }
}

/// The fields that are not at their defaults.
fn json(value: &impl serde::Serialize) -> String {
    let mut value = serde_json::to_value(value).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| {
            !(field.is_null()
                || *field == Value::Bool(false)
                || field.as_object().is_some_and(serde_json::Map::is_empty)
                || field.as_array().is_some_and(Vec::is_empty))
        });
    }
    value.to_string()
}

fn describe_question(body: &Value) -> String {
    let mut body = body.clone();
    if body["signedTransaction"].is_string() {
        body["signedTransaction"] = Value::from("…");
    }
    body.to_string()
}
