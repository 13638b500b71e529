-- What is remembered of the stores' purchases beside events: which purchase replaced which, what is owed and asked, how far histories
-- were read, and for which user a purchase was first verified.
-- tables: creates apple_history_reads, apple_test_notifications, first_seen_keys, first_seen_purchases, google_voided_reads, owed_acknowledgements, purchase_links, refund_questions, voided_purchases; locks tenants

-- At every change of plan Google issues a new purchase token, which names the token that it replaces. The first token of such
-- a chain identifies the subscription. Google does not know a token 60 days after its end, so the links are kept here.
--
-- The newest purchase of a subscription is found from any earlier one, and the user of a purchase is kept: for a purchase made
-- outside the app Google names the user only until it is acknowledged.
create table purchase_links (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    -- SHA-256 of the token: a token may be longer than an index entry.
    token_hash bytea not null check (octet_length(token_hash) = 32),
    token text not null,
    -- The token of the purchase that this one replaces. Null: it is the first, or Google does not name it any more.
    replaces text,
    -- Whether it was ever paid: a purchase that is pending or declined replaces nothing. Null: not known.
    is_paid boolean,
    -- The app's own id of the user, of this purchase or of the lapsed one that it follows.
    app_user_id text,
    recorded_at timestamptz not null default now(),
    primary key (lane, tenant_id, token_hash)
);

-- For an index: immutable, and of bounded length, which a token is not.
create function purchase_token_hash(token text) returns bytea language sql immutable strict parallel safe
    as $$ select sha256(convert_to(token, 'UTF8')) $$;

-- Finds the purchase that replaces a token.
create index purchase_links_replaces on purchase_links (lane, tenant_id, purchase_token_hash(replaces)) where replaces is not null;

-- Purchases of Google Play that are not acknowledged, so that their tenants are told before Google refunds them.
--
-- One row is a purchase that was not acknowledged when its notification was received. It is removed when Google says that nothing is
-- owed any more, or a day after the deadline.
create table owed_acknowledgements (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    -- SHA-256 of the purchase token.
    token_hash bytea not null check (octet_length(token_hash) = 32),
    purchase_token text not null,
    subject_type text not null check (subject_type in ('subscription', 'product')),
    -- Whether an acknowledgement was tried, and is tried again.
    is_wanted boolean not null default false,
    -- Google refunds the purchase after that time.
    acknowledge_by timestamptz not null,
    -- How often Google was asked whether it is still owed.
    attempt_count integer not null default 0,
    -- When Google is asked next. While a process asks, the end of its lease. Null once the tenant was told.
    next_check_at timestamptz,
    created_at timestamptz not null default now(),
    primary key (lane, tenant_id, token_hash)
);

create index owed_acknowledgements_due on owed_acknowledgements (lane, next_check_at) where next_check_at is not null;
create index owed_acknowledgements_over on owed_acknowledgements (lane, acknowledge_by) where acknowledge_by is not null;

-- What the stores ask about refunds, so that an answer is given in time, and what a tenant answers where its backend does not.
--
-- One row is a question of a store. It is removed a week after the store takes no answer any more.
create table refund_questions (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- SHA-256 of the store's id of the question: Apple's notificationUUID, Google's pendingRefundToken.
    question_hash bytea not null check (octet_length(question_hash) = 32),
    -- Apple's transaction id, or Google's order id.
    purchase_id text not null,
    -- Google's pendingRefundToken. Null for Apple.
    refund_token text,
    -- Where Apple asked. Null for Google.
    environment text check (environment in ('production', 'sandbox')),
    -- The store takes no answer after that time.
    answer_by timestamptz not null,
    -- When the answer of the tenant's settings is sent, or tried again. Null once nothing is left to do.
    next_check_at timestamptz,
    -- While a process sends that answer, the end of its lease.
    leased_until timestamptz,
    -- How often that answer was tried.
    attempt_count integer not null default 0,
    -- answered: by the backend. default_sent: by the tenant's settings. refused: the store did not take that. missed: nothing was sent
    -- in time. Null: it is open.
    outcome text check (outcome in ('answered', 'default_sent', 'refused', 'missed')),
    -- Why the answer of the tenant's settings was not taken. Null: it was, or was not tried.
    error text,
    created_at timestamptz not null default now(),
    primary key (lane, tenant_id, source, question_hash)
);

create index refund_questions_due on refund_questions (lane, next_check_at) where next_check_at is not null;
create index refund_questions_by_purchase on refund_questions (lane, tenant_id, source, purchase_id)
    where purchase_id is not null;
create index refund_questions_over on refund_questions (lane, answer_by) where answer_by is not null;

-- Which refunds of Google Play are known, so that those whose notification did not arrive can be fetched, and none is told twice.
--
-- One row is a refund of an order that a notification, or Google's list of refunds, has told.
create table voided_purchases (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    -- SHA-256 of the purchase token, the order id and the refund type, joined by line feeds.
    refund_hash bytea not null check (octet_length(refund_hash) = 32),
    -- The external id of its event.
    external_id text not null,
    created_at timestamptz not null default now(),
    primary key (lane, tenant_id, refund_hash)
);

create index voided_purchases_by_age on voided_purchases (lane, created_at) where created_at is not null;

-- How far Google's list of refunds was read for a tenant.
create table google_voided_reads (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    -- What was refunded before is known.
    read_until timestamptz not null,
    -- When it was last read to its end. Null: not yet.
    last_success_at timestamptz,
    -- When it is read next.
    next_read_at timestamptz not null,
    -- Why the last reading failed. Null: it did not.
    error text,
    -- How many refunds were recovered, of all readings.
    recovered bigint not null default 0,
    primary key (lane, tenant_id)
);

-- How far Apple's history of notifications has been read for each tenant, so that the job `backfill` fetches what did not arrive.
create table apple_history_reads (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    environment text not null check (environment in ('production', 'sandbox')),
    -- What Apple signed before is stored, or was refused.
    read_until timestamptz not null,
    -- When it was last read to its end. Null: not yet.
    last_success_at timestamptz,
    -- When it is read next.
    next_read_at timestamptz not null,
    -- Where the reading goes on that was broken off, as HistoryPosition. Null: the next one begins anew.
    position jsonb,
    -- Why the last reading failed. Null: it did not.
    error text,
    -- Whether Apple knows the app in this environment: it does not know in production what was never released.
    is_app_known boolean not null default true,
    -- How many notifications were recovered, of all readings.
    recovered bigint not null default 0,
    -- When the row was written last, by the database's clock.
    written_at timestamptz not null default now(),
    primary key (lane, tenant_id, environment)
);

-- The result of the latest test notification from Apple.
create table apple_test_notifications (
    tenant_id text not null references tenants (id),
    environment text not null check (environment in ('production', 'sandbox')),
    asked_at timestamptz not null,
    -- Apple's sendAttemptResult; NO_ADDRESS: App Store Connect has no notification URL for the app.
    result text not null,
    primary key (tenant_id, environment)
);

-- For which user each purchase was first verified, of tenants that ask for it.
--
-- A row: the tenant has asked for it. The key is random, so that a rotation of the encryption key, which seals it again, changes
-- no hash. Without the row, what the hashes below belong to cannot be tested any more.
create table first_seen_keys (
    tenant_id text primary key references tenants (id),
    key_enc bytea not null,
    created_at timestamptz not null default now()
);

-- Processes keep the sealed key with the tenant's API keys.
create trigger notify_change after insert or delete or update on first_seen_keys
    for each row execute function notify_change();

create table first_seen_purchases (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    -- HMAC-SHA-256 of the store and the subject's key, with the tenant's key.
    purchase_hash bytea not null check (octet_length(purchase_hash) = 32),
    -- HMAC-SHA-256 of that hash and the user: the same user has another hash in each row.
    user_hash bytea not null check (octet_length(user_hash) = 32),
    first_seen_at timestamptz not null,
    -- When the purchase was last verified, to the day: a row is removed some time after that.
    last_seen_at timestamptz not null,
    primary key (lane, tenant_id, purchase_hash)
);

create index first_seen_purchases_by_age on first_seen_purchases (lane, last_seen_at) where last_seen_at is not null;
