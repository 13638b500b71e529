-- What a database may hold when the eighteenth migration has run.
insert into unresolved_states (event_id, tenant_id, source, key_hash, state_error, next_attempt_at)
    select id, tenant_id, source, sha256('1'), 'store_unavailable', now() from webhook_events limit 1;
