-- Few deliveries are not delivered, and operators list those. Without this index a list of failed deliveries reads a tenant's
-- whole history.
-- tables: reads_all webhook_deliveries
create index webhook_deliveries_unfinished on webhook_deliveries (tenant_id, created_at desc)
    where status <> 'delivered';
