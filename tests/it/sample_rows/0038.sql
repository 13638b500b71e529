-- What a database may hold when the thirty-eighth migration has run.
insert into pruned_events (received_before) values (now() - interval '90 days');
