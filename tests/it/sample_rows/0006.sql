-- Rows that a database may hold when the sixth migration has run: beside the rows of those before it.
insert into purchase_links (lane, tenant_id, token_hash, token, replaces)
    values (tenant_lane('tenant_sample'), 'tenant_sample', sha256('token'), 'token', 'earlier-token');
insert into owed_acknowledgements (lane, tenant_id, token_hash, purchase_token, subject_type, acknowledge_by, next_check_at)
    values (tenant_lane('tenant_sample'), 'tenant_sample', sha256('1'), '1', 'subscription', now() + interval '3 days', now() + interval '2 days');
insert into refund_questions (lane, tenant_id, source, question_hash, purchase_id, environment, answer_by, next_check_at)
    values (tenant_lane('tenant_sample'), 'tenant_sample', 'apple', sha256('1'), '2000000000000001', 'sandbox', now() + interval '12 hours', now() + interval '10 hours');
insert into voided_purchases (lane, tenant_id, refund_hash, external_id) values (tenant_lane('tenant_sample'), 'tenant_sample', sha256('1'), '136969346945');
insert into google_voided_reads (lane, tenant_id, read_until, next_read_at) values (tenant_lane('tenant_sample'), 'tenant_sample', now(), now());
insert into apple_history_reads (lane, tenant_id, environment, read_until, next_read_at)
    values (tenant_lane('tenant_sample'), 'tenant_sample', 'production', now(), now());
insert into apple_test_notifications (tenant_id, environment, asked_at, result)
    values ('tenant_sample', 'production', now(), 'SUCCESS');
insert into first_seen_keys (tenant_id, key_enc) values ('tenant_sample', '\x01');
insert into first_seen_purchases (lane, tenant_id, purchase_hash, user_hash, first_seen_at, last_seen_at)
    values (tenant_lane('tenant_sample'), 'tenant_sample', sha256('1'), sha256('2'), now(), now());
