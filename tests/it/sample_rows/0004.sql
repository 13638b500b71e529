-- Rows that a database may hold when the fourth migration has run: beside the rows of those before it.
insert into body_dictionaries (content_hash, content) values (sha256('content'), 'content');
insert into subjects (lane, tenant_id, source, key_hash, last_sequence) values (tenant_lane('tenant_sample'), 'tenant_sample', 'apple', sha256('1'), 3);
insert into subjects (lane, tenant_id, source, key_hash, last_sequence, recheck_key, told_state_hash, changes_by)
    values (tenant_lane('tenant_sample'), 'tenant_sample', 'google', sha256('token'), 1, 'token', sha256('2'), now());
insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body, feed_position)
    values (tenant_lane('tenant_sample'), 'evt_sample', 'tenant_sample', 'apple', 'external', 'subscription.renewed', 'apple.did_renew', '{}', '\x007b7d', 1);
insert into unresolved_states (lane, event_id, tenant_id, source, key_hash, state_error, next_attempt_at)
    values (tenant_lane('tenant_sample'), 'evt_sample', 'tenant_sample', 'apple', sha256('1'), 'store_unavailable', now());
insert into pruned_events (received_before) values (now() - interval '90 days');
insert into event_feeds (lane, tenant_id, last_position) values (tenant_lane('tenant_sample'), 'tenant_sample', 1);
