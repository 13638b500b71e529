-- Events whose purchase could not be judged when they were stored: its state is told by a later event.
-- previous release: works
-- tables: creates unresolved_states; locks tenants, webhook_events

-- One row is an event with a subject and without a state, until an event `purchase.state` has told it. The row repeats nothing of the
-- purchase: that is read from the event.
create table unresolved_states (
    event_id text primary key references webhook_events (id) on delete cascade,
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
    created_at timestamptz not null default now()
);

create index unresolved_states_due on unresolved_states (next_attempt_at);
create index unresolved_states_by_subject on unresolved_states (tenant_id, source, key_hash);
