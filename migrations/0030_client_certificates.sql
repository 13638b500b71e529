-- The certificate and its key that Attesto shows to a callback which asks for a client certificate.
-- previous release: works
-- tables: creates webhook_client_certificates; locks webhook_configs

create table webhook_client_certificates (
    tenant_id text primary key references webhook_configs (tenant_id),
    -- DER: the certificate, and those between it and its root.
    certificate_chain bytea[] not null check (cardinality(certificate_chain) > 0),
    -- Its private key, DER.
    key_enc bytea not null,
    not_before timestamptz not null,
    not_after timestamptz not null,
    created_at timestamptz not null default now()
);

create constraint trigger audit_change after insert or delete or update on webhook_client_certificates
    deferrable initially immediate for each row execute function audit_change('tenant_id');
