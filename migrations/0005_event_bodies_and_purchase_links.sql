-- What a delivery sends, and which Google purchase replaced which.
-- tables: creates purchase_links; locks tenants, webhook_events

-- The JSON that is sent to the callback, made once, when the event is stored: every attempt of every delivery sends
-- these bytes, so that a signature made today and one made tomorrow are over the same text.
alter table webhook_events add column body text not null default '';
alter table webhook_events alter column body drop default;

-- Google gives every change of plan a purchase token of its own, which names the one it replaces. Followed back to the
-- first, they say that all of it is one subscription. Google forgets a token 60 days after its end, so what was once
-- learned is kept. A row never changes.
create table purchase_links (
    tenant_id text not null references tenants (id),
    -- SHA-256 of the token: a token may be longer than an index entry.
    token_hash bytea not null check (octet_length(token_hash) = 32),
    token text not null,
    -- The token of the purchase that this one replaces. Null: it is the first, or Google no longer tells.
    replaces text,
    recorded_at timestamptz not null default now(),
    primary key (tenant_id, token_hash)
);
