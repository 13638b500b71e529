-- What a database may hold when the twenty-sixth migration has run.
insert into owed_acknowledgements (tenant_id, token_hash, purchase_token, subject_type, acknowledge_by, next_check_at)
    select id, sha256('1'), '1', 'subscription', now() + interval '3 days', now() + interval '2 days' from tenants limit 1;
