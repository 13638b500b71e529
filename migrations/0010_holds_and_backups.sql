-- Holds, with which a restored system sends nothing until an operator releases them; and the list of backups.
-- tables: creates backups, delivery_holds

-- While one row is not released, no process begins a delivery.
create table delivery_holds (
    id bigint generated always as identity primary key,
    held_at timestamptz not null default now(),
    -- The machine on which it was requested.
    held_by text not null,
    released_at timestamptz,
    released_by text,
    check ((released_at is null) = (released_by is null))
);

create unique index delivery_holds_one_at_a_time on delivery_holds ((true)) where released_at is null;

create trigger audit_change after insert or delete or update on delivery_holds
    for each row execute function audit_change('id');

-- The backups of this database, and when each was last restored as a test.
create table backups (
    -- As in the backup's manifest.
    id text primary key,
    created_at timestamptz not null,
    -- The machine it was made on.
    host text not null,
    bytes bigint not null,
    verified_at timestamptz,
    -- Whether the test restore had every row of the manifest.
    sound boolean,
    check ((verified_at is null) = (sound is null))
);

create index backups_by_age on backups (created_at desc);
