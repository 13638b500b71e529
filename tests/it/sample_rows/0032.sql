-- What a database may hold when the thirty-second migration has run.
insert into voided_purchases (tenant_id, refund_hash, external_id) select id, sha256('1'), '136969346945' from tenants limit 1;
insert into google_voided_reads (tenant_id, read_until, next_read_at) select id, now(), now() from tenants limit 1;
