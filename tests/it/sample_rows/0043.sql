-- What a database may hold when the forty-third migration has run.
insert into first_seen_keys (tenant_id, key_enc) select id, '\x01' from tenants limit 1;
insert into first_seen_purchases (tenant_id, purchase_hash, user_hash, first_seen_at, last_seen_at)
    select id, sha256('1'), sha256('2'), now(), now() from tenants limit 1;
