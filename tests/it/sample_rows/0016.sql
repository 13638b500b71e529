-- What a database may hold when the sixteenth migration has run.
insert into subjects (tenant_id, source, key_hash, last_sequence)
    select id, 'apple', sha256('1'), 3 from tenants limit 1;
