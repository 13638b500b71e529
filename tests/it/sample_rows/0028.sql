-- What a database may hold when the twenty-eighth migration has run.
insert into apple_history_reads (tenant_id, environment, read_until, next_read_at)
    select id, 'production', now(), now() from tenants limit 1;
