-- Why the last attempt of a delivery failed, in one sentence for operators; callbacks by http in a private network; redeliveries of
-- what waits for an earlier callback.
-- previous release: works
-- tables: locks webhook_allowed_networks, webhook_deliveries, webhook_redeliveries

-- Null after an attempt that succeeded, and of attempts before this release.
alter table webhook_deliveries add column last_error text;

-- Whether callbacks in the network may be called by http, without TLS.
alter table webhook_allowed_networks add column allow_http boolean not null default false;

-- Only events that wait for, or failed at, another callback URL than the tenant's own one.
alter table webhook_redeliveries add column previous_callback_only boolean not null default false;
