-- A transaction can defer its rows of the log of changes to its end. `attesto tenant import` does, because it writes for a long
-- time, and other transactions that add to the log would wait for it.
-- previous release: works
-- tables: locks api_keys, apple_credentials, google_credentials, tenants, webhook_allowed_networks, webhook_configs, webhook_previous_secrets, webhook_redeliveries

-- In all other transactions the row is written at once.
drop trigger audit_change on tenants;
create constraint trigger audit_change after insert or delete or update on tenants
    deferrable initially immediate for each row execute function audit_change('id');
drop trigger audit_change on api_keys;
create constraint trigger audit_change
    after insert or delete or update of tenant_id, key_hash, name, environment, revoked_at on api_keys
    deferrable initially immediate for each row execute function audit_change('id');
drop trigger audit_change on apple_credentials;
create constraint trigger audit_change after insert or delete or update on apple_credentials
    deferrable initially immediate for each row execute function audit_change('tenant_id');
drop trigger audit_change on google_credentials;
create constraint trigger audit_change after insert or delete or update on google_credentials
    deferrable initially immediate for each row execute function audit_change('tenant_id');
drop trigger audit_change on webhook_configs;
create constraint trigger audit_change after insert or delete or update on webhook_configs
    deferrable initially immediate for each row execute function audit_change('tenant_id');
drop trigger audit_change on webhook_previous_secrets;
create constraint trigger audit_change after insert or delete or update on webhook_previous_secrets
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'number');
drop trigger audit_change on webhook_allowed_networks;
create constraint trigger audit_change after insert or delete or update on webhook_allowed_networks
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'network', 'port');
drop trigger audit_change on webhook_redeliveries;
create constraint trigger audit_change after insert or delete on webhook_redeliveries
    deferrable initially immediate for each row execute function audit_change('id');
