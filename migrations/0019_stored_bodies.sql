-- The body of an event, which contains the notification and its decoded parts, is stored once and compressed.
-- previous release: stops, it reads the body of an event where this release does not write it
-- tables: creates body_dictionaries; reads_all webhook_events

-- Compression dictionaries: the keys of the stores' messages and a verified certificate chain, and nothing about a purchase.
-- A row never changes and is never deleted, because stored bodies are decompressed with it.
create table body_dictionaries (
    id integer primary key generated always as identity,
    -- SHA-256 of the content.
    content_hash bytea not null unique check (octet_length(content_hash) = 32),
    content bytea not null,
    created_at timestamptz not null default now()
);

-- The first byte is the format: see src/deliveries/body/codec.rs. Existing rows keep `body` and `raw_payload`; both are null in
-- new rows, because the body contains the raw notification.
alter table webhook_events
    add column stored_body bytea,
    alter column raw_payload drop not null,
    alter column body drop not null,
    add constraint webhook_events_have_a_body check (num_nonnulls(body, stored_body) = 1),
    -- It is compressed already.
    alter column stored_body set storage external,
    -- An Apple event, about 2.6 KB with a compressed decoded_payload, stays in the table; three fit a page. With the default of
    -- 2 KB, a part of it would be moved to the TOAST table, which takes a quarter more processor time.
    set (toast_tuple_target = 2700);
