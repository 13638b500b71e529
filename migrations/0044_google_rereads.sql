-- Which subscriptions of Google Play should have changed by now, so that they are read again when no message told it.
-- previous release: works
-- tables: reads_all subjects

alter table subjects
    -- The subject's key as it is, where something must happen to it. Null for Apple and for one-time products.
    add column recheck_key text,
    -- SHA-256 of the state that was told last, without what changes by itself.
    add column told_state_hash bytea check (octet_length(told_state_hash) = 32),
    -- Until when something must happen to it, according to that state. Null: nothing need happen.
    add column changes_by timestamptz;

create index subjects_changes_by on subjects (tenant_id, changes_by, key_hash) where changes_by is not null;
