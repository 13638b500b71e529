-- Before when received events may have been pruned, so that a store's history is not read for that time: what was stored and
-- pruned would be taken for missing, and be delivered again. And which histories fail because the store has no such app.
-- previous release: works
-- tables: creates pruned_events; locks apple_history_reads

create table pruned_events (
    is_only_row boolean primary key default true check (is_only_row),
    -- By the database's clock.
    received_before timestamptz not null
);

alter table apple_history_reads
    -- Whether Apple knows the app in this environment: it does not know in production what was never released.
    add column is_app_known boolean not null default true,
    -- When the row was written last, by the database's clock.
    add column written_at timestamptz not null default now();
