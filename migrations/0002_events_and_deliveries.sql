-- Events from the stores' notifications, their deliveries to the tenants' callbacks, and the optional log of verifications.
-- tables: creates validation_audit, webhook_configs, webhook_deliveries, webhook_events; locks tenants

create table webhook_configs (
    tenant_id text primary key references tenants (id),
    callback_url text not null,
    -- The secret that signs deliveries.
    secret_enc bytea not null,
    is_active boolean not null default true,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create trigger notify_change after insert or delete or update on webhook_configs
    for each row execute function notify_change();

create table webhook_events (
    id text primary key,
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
    raw_payload jsonb not null,
    decoded_payload jsonb not null,
    -- When the store says it happened.
    occurred_at timestamptz,
    received_at timestamptz not null default now(),
    unique (tenant_id, source, external_id)
);

create index webhook_events_by_tenant on webhook_events (tenant_id, received_at desc);
create index webhook_events_by_subject on webhook_events (tenant_id, subject_key) where subject_key is not null;

create table webhook_deliveries (
    id text primary key,
    event_id text not null references webhook_events (id),
    tenant_id text not null references tenants (id),
    -- Set when the event is stored: a later change of the configuration does not redirect it.
    callback_url text not null,
    status text not null default 'pending' check (status in ('pending', 'delivered', 'failed')),
    attempt_count integer not null default 0,
    next_attempt_at timestamptz default now(),
    last_response_code integer,
    -- At most the first kilobyte.
    last_response_body text,
    delivered_at timestamptz,
    failed_at timestamptz,
    created_at timestamptz not null default now()
);

create index webhook_deliveries_by_event on webhook_deliveries (event_id);
create index webhook_deliveries_due on webhook_deliveries (next_attempt_at) where status = 'pending';

create table validation_audit (
    id text primary key,
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- A keyed hash: equal for the same purchase, and the purchase token cannot be computed from it.
    identifier_hash bytea not null,
    valid boolean not null,
    error_code text,
    latency_ms integer not null,
    occurred_at timestamptz not null default now(),
    -- The same time as occurred_at, under the name that the other tables use.
    created_at timestamptz not null generated always as (occurred_at) stored
);

create index validation_audit_by_tenant on validation_audit (tenant_id, occurred_at desc);
