-- The time that every statement works with. A test replaces the function in its own database by one that adds an offset, and
-- so moves time without waiting.
-- previous release: works
-- tables: none

-- Postgres puts the body in place of the call when it plans, so that a call costs what its body does and an index is used as
-- before. `statement_timestamp()` and not `now()`: inside a transaction that waited, that one is older.
create function attesto_now() returns timestamptz
    language sql stable parallel safe
    as $$ select statement_timestamp() $$;
