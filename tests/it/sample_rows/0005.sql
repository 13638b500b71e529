-- Rows that a database may hold when the fifth migration has run: beside the rows of those before it.
insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url)
    values (tenant_lane('tenant_sample'), 'del_sample', 'evt_sample', 'tenant_sample', 'https://example.com/hook');
insert into webhook_redeliveries
    (lane, id, tenant_id, received_from, received_until, requested_by, next_batch_at, created_at)
    values (tenant_lane('tenant_sample'), 'red_sample', 'tenant_sample', now(), now(), 'sample', now(), now());
insert into delivery_holds (held_by, released_at, released_by) values ('sample', now(), 'sample');
insert into delivery_holds (held_by) values ('sample');
