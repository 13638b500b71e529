-- What each migration promises to releases that do not know it, so that one of them can be started again.
-- previous release: works
-- tables: creates schema_promises

-- A release that meets migrations it does not know serves if all of them say that it may. A row is written with the
-- migration itself; one without a row promises nothing.
create table schema_promises (
    version bigint primary key,
    previous_works boolean not null,
    why text,
    applied_at timestamptz not null default now()
);
