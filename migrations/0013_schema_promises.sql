-- Whether each migration is compatible with releases that do not know it, so that an older release can be started again.
-- previous release: works
-- tables: creates schema_promises

-- A release serves with migrations that it does not know if all of them have a row here that allows it. The row is written
-- with the migration.
create table schema_promises (
    version bigint primary key,
    previous_works boolean not null,
    why text,
    applied_at timestamptz not null default now()
);
