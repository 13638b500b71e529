-- What a database may hold when the twenty-third migration has run.
insert into event_feeds (tenant_id, last_position) select id, 1 from tenants limit 1;
update webhook_events set feed_position = 1 where id = (select min(id) from webhook_events);
