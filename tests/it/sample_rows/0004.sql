-- What a database may hold when the fourth migration has run: beside the rows of those before it.
insert into webhook_health (tenant_id, callback_url) values ('tenant_sample', 'https://example.com/hook');
insert into webhook_redeliveries
    (id, tenant_id, received_from, received_until, requested_by, next_batch_at, created_at)
    values ('red_sample', 'tenant_sample', now(), now(), 'sample', now(), now());
