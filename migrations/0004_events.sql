-- Events from the stores' notifications, the purchases that they are about, and the order in which tenants read them back.
-- tables: creates body_dictionaries, event_feeds, pruned_events, subjects, unresolved_states, webhook_events; locks tenants

-- Compression dictionaries: the keys of the stores' messages and a verified certificate chain, and nothing about a purchase.
-- A row never changes and is never deleted, because stored bodies are decompressed with it.
create table body_dictionaries (
    id integer primary key generated always as identity,
    -- SHA-256 of the content.
    content_hash bytea not null unique check (octet_length(content_hash) = 32),
    content bytea not null,
    created_at timestamptz not null default now()
);

-- The subscriptions and one-time purchases that events were about. The lock of a row orders the events of its subject.
create table subjects (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- SHA-256 of webhook_events' subject_key before it was cut: a purchase token may be longer than an index entry.
    key_hash bytea not null check (octet_length(key_hash) = 32),
    -- The number of the newest event: 1, 2, 3, …
    last_sequence bigint not null,
    -- The subject's key as it is, where something must happen to it. Null for Apple and for one-time products.
    recheck_key text,
    -- SHA-256 of the state that was told last, without what changes by itself.
    told_state_hash bytea check (octet_length(told_state_hash) = 32),
    -- Until when something must happen to it, according to that state. Null: nothing need happen.
    changes_by timestamptz,
    primary key (lane, tenant_id, source, key_hash)
);

-- Which subscriptions of Google Play should have changed by now, so that they are read again when no message told it.
create index subjects_changes_by on subjects (lane, tenant_id, changes_by, key_hash) where changes_by is not null;

create table webhook_events (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    id text not null,
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- Apple's notificationUUID, Pub/Sub's messageId: the same on every repeat of one notification.
    external_id text not null,
    -- The event type, the same for both stores: subscription.renewed, product.refunded, unknown, …
    event_type text not null,
    reason text,
    -- The store's own name: apple.did_renew, google.subscription.2, …
    platform_event text not null,
    environment text,
    -- The purchase: its originalTransactionId, or the first purchase token of the subscription.
    subject_key text,
    subject_product_id text,
    subject_type text check (subject_type in ('subscription', 'product')),
    app_user_id text,
    -- Null: what the store sent is part of stored_body. A name for queries of operators, who may select it.
    raw_payload jsonb,
    decoded_payload jsonb not null,
    -- When the store says it happened.
    occurred_at timestamptz,
    received_at timestamptz not null default now(),
    -- The event's number among those of its subject. Null where there is no subject.
    sequence bigint,
    -- The `state` that the callback gets. Null where it was not known when the event was stored.
    state jsonb,
    -- Why it was not known: store_unavailable or replaced_by_unknown.
    state_error text,
    -- The JSON that is sent to the callback, made once when the event is stored: every attempt of every delivery sends the same
    -- bytes. It contains the notification as the store sent it. The first byte is the format: see src/deliveries/body/codec.rs.
    stored_body bytea not null,
    -- The order in which the tenant reads its events back. Null until it does. Not given when the event is stored: events become
    -- visible in the order of their commits, which no number that is drawn before the commit has.
    feed_position bigint,
    primary key (lane, id)
);

alter table webhook_events
    -- It is compressed already.
    alter column stored_body set storage external,
    -- An Apple event, about 2.6 KB with a compressed decoded_payload, stays in the table; three fit a page. With the default of
    -- 2 KB, a part of it would be moved to the TOAST table, which takes a quarter more processor time.
    set (toast_tuple_target = 2700);

create index webhook_events_by_tenant on webhook_events (lane, tenant_id, received_at desc)
    where tenant_id is not null and received_at is not null;
create index webhook_events_by_subject on webhook_events (lane, tenant_id, subject_key) where subject_key is not null;
create unique index webhook_events_by_feed_position on webhook_events (lane, tenant_id, feed_position)
    where feed_position is not null;
create index webhook_events_without_feed_position on webhook_events (lane, tenant_id) where feed_position is null;
-- For the retention of rows by age.
create index webhook_events_by_age on webhook_events (lane, received_at, id) where event_type > '';
-- A notification is stored once.
create unique index webhook_events_by_external_id on webhook_events (lane, tenant_id, source, external_id)
    where external_id is not null;

-- Rolls back the statement that calls it: another process stored the same notification meanwhile.
create function raise_notification_repeated() returns boolean language plpgsql volatile as $$
begin
    raise exception 'the notification is stored already' using errcode = 'AT001';
end
$$;

-- Events whose purchase could not be judged when they were stored: its state is told by a later event.
--
-- One row is an event with a subject and without a state, until an event `purchase.state` has told it. The row repeats nothing of the
-- purchase: that is read from the event.
create table unresolved_states (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    event_id text not null,
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- The event's subject, as in subjects.
    key_hash bytea not null check (octet_length(key_hash) = 32),
    -- What is missing: store_unavailable, replaced_by_unknown.
    state_error text not null,
    -- How often the store was asked.
    attempt_count integer not null default 0,
    -- When the store is asked next. While a process asks, the end of its lease.
    next_attempt_at timestamptz not null,
    created_at timestamptz not null default now(),
    primary key (lane, event_id),
    foreign key (lane, event_id) references webhook_events (lane, id) on delete cascade
);

create index unresolved_states_due on unresolved_states (lane, next_attempt_at) where next_attempt_at is not null;
create index unresolved_states_by_subject on unresolved_states (lane, tenant_id, source, key_hash)
    where key_hash is not null;

-- Before when received events may have been pruned, so that a store's history is not read for that time: what was stored and
-- pruned would be taken for missing, and be delivered again.
create table pruned_events (
    is_only_row boolean primary key default true check (is_only_row),
    -- By the database's clock.
    received_before timestamptz not null
);

-- One row is a tenant that has read its events back. The lock of the row orders the numbers: they are committed in their order.
create table event_feeds (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    -- The number that was given last.
    last_position bigint not null default 0,
    -- Events from before the first read are numbered in batches, from the oldest on: how far that has come. Null: it is done.
    history_from timestamptz default '-infinity',
    primary key (lane, tenant_id)
);

-- Whether an event of the tenant has no number. Without sequential and bitmap scans, which look cheap to the planner where many
-- tenants never read their events back, and which read all events of the tenant.
create function has_unnumbered_events(of_tenant text) returns boolean
    language plpgsql stable set enable_seqscan = off set enable_bitmapscan = off
    as $$
begin
    return exists (
        select from webhook_events
        where lane = tenant_lane(of_tenant) and tenant_id = of_tenant and feed_position is null
    );
end
$$;

-- Gives numbers to up to `at_most` events of the tenant that have none, and returns to how many. A function, so that no client can
-- leave the transaction open; each of its statements sees what was committed before the lock of the feed was granted.
create function number_events(of_tenant text, at_most bigint) returns bigint
    language plpgsql volatile set enable_seqscan = off set enable_bitmapscan = off
    as $$
declare
    of_lane smallint := tenant_lane(of_tenant);
    feed event_feeds;
    numbered bigint;
    newest timestamptz;
begin
    if not has_unnumbered_events(of_tenant) then
        return 0;
    end if;
    insert into event_feeds (lane, tenant_id) values (of_lane, of_tenant) on conflict do nothing;
    select * into feed from event_feeds where lane = of_lane and tenant_id = of_tenant for update;
    with history as (
        select id, received_at from webhook_events
        where feed.history_from is not null and lane = of_lane and tenant_id = of_tenant and received_at >= feed.history_from
            and feed_position is null
        order by received_at
        limit at_most
    ), recent as materialized (
        select id, received_at from webhook_events
        where feed.history_from is null and lane = of_lane and tenant_id = of_tenant and feed_position is null
        limit at_most
    ), picked as (
        select id, received_at, row_number() over (order by received_at, id) as turn
        from (select * from history union all select * from recent) unnumbered
    ), updated as (
        update webhook_events event set feed_position = feed.last_position + picked.turn
        from picked where event.lane = of_lane and event.id = picked.id
        returning event.received_at
    )
    select count(*), max(received_at) into numbered, newest from updated;
    update event_feeds set
        last_position = feed.last_position + numbered,
        history_from = case when feed.history_from is not null and numbered = at_most then newest end
    where lane = of_lane and tenant_id = of_tenant;
    return numbered;
end
$$;
