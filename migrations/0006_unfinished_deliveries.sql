-- What an operator asks about when something is wrong is the small part that is not delivered. Without this, the question
-- "what failed" reads a tenant's whole history.
-- tables: reads_all webhook_deliveries
create index webhook_deliveries_unfinished on webhook_deliveries (tenant_id, created_at desc)
    where status <> 'delivered';
