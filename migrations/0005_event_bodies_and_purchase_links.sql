-- The body that a delivery sends, and which Google purchase replaced which.
-- tables: creates purchase_links; locks tenants, webhook_events

-- The JSON that is sent to the callback, made once when the event is stored: every attempt of every delivery sends the same
-- bytes.
alter table webhook_events add column body text not null default '';
alter table webhook_events alter column body drop default;

-- At every change of plan Google issues a new purchase token, which names the token that it replaces. The first token of such
-- a chain identifies the subscription. Google does not know a token 60 days after its end, so the links are kept here.
create table purchase_links (
    tenant_id text not null references tenants (id),
    -- SHA-256 of the token: a token may be longer than an index entry.
    token_hash bytea not null check (octet_length(token_hash) = 32),
    token text not null,
    -- The token of the purchase that this one replaces. Null: it is the first, or Google does not name it any more.
    replaces text,
    recorded_at timestamptz not null default now(),
    primary key (tenant_id, token_hash)
);
