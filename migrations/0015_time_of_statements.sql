-- The present time for every statement. A test replaces the function in its own database by one that adds an offset, to move
-- time without waiting.
-- previous release: works
-- tables: none

-- Postgres inlines the body when it plans, so that a call costs no more and indexes are used as before. `statement_timestamp()`
-- and not `now()`, which is the start of the transaction.
create function attesto_now() returns timestamptz
    language sql stable parallel safe
    as $$ select statement_timestamp() $$;
