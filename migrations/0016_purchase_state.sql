-- The state of the purchase in each event, and sequence numbers of the events of one purchase.
-- previous release: works
-- tables: creates subjects; locks tenants, webhook_events

-- The subscriptions and one-time purchases that events were about. The lock of a row orders the events of its subject.
create table subjects (
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- SHA-256 of webhook_events' subject_key before it was cut: a purchase token may be longer than an index entry.
    key_hash bytea not null check (octet_length(key_hash) = 32),
    -- The number of the newest event: 1, 2, 3, …
    last_sequence bigint not null,
    primary key (tenant_id, source, key_hash)
);

alter table webhook_events
    -- The event's number among those of its subject. Null where there is no subject.
    add column sequence bigint,
    -- The `state` that the callback gets. Null where it was not known when the event was stored.
    add column state jsonb,
    -- Why it was not known: store_unavailable or replaced_by_unknown.
    add column state_error text;

-- Rolls back the statement that calls it: another process stored the same notification meanwhile.
create function raise_notification_repeated() returns boolean language plpgsql volatile as $$
begin
    raise exception 'the notification is stored already' using errcode = 'AT001';
end
$$;
