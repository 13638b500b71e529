-- What a database may hold when the twenty-ninth migration has run.
insert into refund_questions (tenant_id, source, question_hash, purchase_id, environment, answer_by, next_check_at)
    select id, 'apple', sha256('1'), '2000000000000001', 'sandbox', now() + interval '12 hours', now() + interval '10 hours' from tenants limit 1;
