-- What a database may hold when the forty-fourth migration has run.
insert into subjects (tenant_id, source, key_hash, last_sequence, recheck_key, told_state_hash, changes_by)
    select id, 'google', sha256('token of 0044'), 1, 'token of 0044', sha256('2'), now() from tenants limit 1;
