-- The optional log of verifications, and the log of operators' changes.
-- tables: creates operator_audit, validation_audit, validation_audit_keys; locks api_keys, apple_credentials, delivery_holds, first_seen_keys, google_credentials, tenants, webhook_allowed_networks, webhook_client_certificates, webhook_configs, webhook_deliveries, webhook_previous_secrets, webhook_redeliveries

create table validation_audit (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    id text not null,
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- A keyed hash: equal for the same purchase, and the purchase token cannot be computed from it.
    identifier_hash bytea not null,
    valid boolean not null,
    error_code text,
    latency_ms integer not null,
    occurred_at timestamptz not null default now(),
    -- The same time as occurred_at, under the name that the other tables use.
    created_at timestamptz not null generated always as (occurred_at) stored,
    primary key (lane, id)
);

create index validation_audit_by_tenant on validation_audit (lane, tenant_id, occurred_at desc) where tenant_id is not null;
-- For the retention of rows by age.
create index validation_audit_by_age on validation_audit (lane, occurred_at) where occurred_at is not null;

-- Identifiers in validation_audit are hashed with a key that is generated once and never changes, so that hashes stay
-- comparable. The key is random and sealed: a rotation of the encryption key seals it again and does not change it.
create table validation_audit_keys (
    number integer primary key check (number = 1),
    key_enc bytea not null,
    created_at timestamptz not null default now()
);

-- One row for each change, made by Attesto or by another client: the triggers below write it in the transaction of the change.
-- Each row holds the hash of the row before it, so that `attesto audit verify` finds rows that were edited or deleted.
create table operator_audit (
    -- 1, 2, 3 and so on, without a gap.
    seq bigint primary key check (seq > 0),
    occurred_at timestamptz not null,
    -- The user of the operating system; for a change not made by Attesto, the database's role.
    actor text not null,
    host text not null,
    -- The command, such as `key revoke`; for a change not made by Attesto, the client's application_name.
    command text not null,
    -- insert, update or delete; or a job's own word.
    action text not null,
    -- The table, and the row.
    object text not null,
    target text not null,
    tenant_id text,
    -- Of an update only what changed. Secrets are fingerprints. json and not jsonb, since the text is hashed.
    before json,
    after json,
    previous_hash bytea not null check (octet_length(previous_hash) = 32),
    hash bytea not null check (octet_length(hash) = 32)
);

create index operator_audit_by_tenant on operator_audit (tenant_id, seq desc);

-- A row's hash is over the previous row's hash and each field as `length:text`, `-` for null, separated by commas.
-- src/audit/operator_audit.rs computes the same.
create function operator_audit_hash(entry operator_audit) returns bytea language sql stable as $$
    select sha256(entry.previous_hash || convert_to(
        string_agg(coalesce(octet_length(convert_to(field, 'UTF8')) || ':' || field, '-'), ',' order by position),
        'UTF8'))
    from unnest(array[
        entry.seq::text,
        (extract(epoch from entry.occurred_at) * 1000)::bigint::text,
        entry.actor, entry.host, entry.command, entry.action, entry.object, entry.target, entry.tenant_id,
        entry.before::text, entry.after::text
    ]) with ordinality as fields (field, position)
$$;

-- Adds a row to the chain. Concurrent transactions that add rows wait for each other.
--
-- The actor is read from settings of the session, which also hold the connection's application_name. Behind a pooler that
-- shares connections the settings can be those of another client, but the application_name is not; where the two differ, the
-- settings are not used.
create function note_operation(
    action text, object text, target text, tenant_id text, before jsonb, after jsonb
) returns void language plpgsql as $$
declare
    entry operator_audit;
    told boolean := current_setting('application_name') = nullif(current_setting('attesto.session', true), '');
begin
    perform from process_locks where name = 'operator_audit' for no key update;
    if not found then
        raise exception 'the row operator_audit is missing in the table process_locks';
    end if;
    select last.seq, last.hash into entry.seq, entry.previous_hash
        from operator_audit last order by last.seq desc limit 1;
    entry.seq := coalesce(entry.seq, 0) + 1;
    entry.previous_hash := coalesce(entry.previous_hash, decode(repeat('00', 32), 'hex'));
    entry.occurred_at := date_trunc('milliseconds', clock_timestamp());
    entry.actor := coalesce(case when told then current_setting('attesto.actor', true) end, session_user);
    entry.host := coalesce(
        case when told then current_setting('attesto.host', true) end, host(inet_client_addr()), 'local');
    entry.command := coalesce(
        case when told then current_setting('attesto.command', true) end,
        nullif(current_setting('application_name'), ''), '?');
    entry.action := note_operation.action;
    entry.object := note_operation.object;
    entry.target := note_operation.target;
    entry.tenant_id := note_operation.tenant_id;
    entry.before := note_operation.before;
    entry.after := note_operation.after;
    entry.hash := operator_audit_hash(entry);
    insert into operator_audit select entry.*;
end
$$;

-- A row as it may be shown: sealed and hashed values as fingerprints, URLs without their query, and without the columns that
-- change without an operator or follow from others.
create function auditable(line jsonb) returns jsonb language sql immutable as $$
    select coalesce(jsonb_object_agg(key, case
        when value = 'null' then value
        when key like '%\_enc' then to_jsonb('sealed:' || left(encode(sha256(convert_to(value #>> '{}', 'UTF8')), 'hex'), 16))
        when key like '%\_hash' then to_jsonb('hash:' || substr(value #>> '{}', 3, 16))
        when key like '%\_url' then to_jsonb(regexp_replace(value #>> '{}', '[?#].*$', '?…'))
        else value
    end), '{}')
    from jsonb_each(line)
    where key not in ('last_used_at', 'callback_key', 'last_callback', 'lane')
$$;

-- Adds the change of one row to the log: the row before and after, as `auditable` shows it. Of an update only what changed, and
-- nothing if it was only sealed again with another key, which is no operator's change.
create function audit_row(object text, target text, tenant_id text, was jsonb, is_now jsonb) returns void language plpgsql as $$
declare
    changed text[];
begin
    if was is not null and is_now is not null then
        select coalesce(array_agg(key), '{}') into changed
            from jsonb_each(is_now) where value is distinct from was -> key;
        if not exists (select from unnest(changed) as name where name not like '%\_enc') then
            return;
        end if;
        select jsonb_object_agg(key, value) into was from jsonb_each(was) where key = any (changed);
        select jsonb_object_agg(key, value) into is_now from jsonb_each(is_now) where key = any (changed);
        perform note_operation('update', object, target, tenant_id, was, is_now);
    else
        perform note_operation(case when was is null then 'insert' else 'delete' end, object, target, tenant_id, was, is_now);
    end if;
end
$$;

-- Its arguments are the columns that identify the row.
create function audit_change() returns trigger language plpgsql
    set bytea_output = 'hex' set timezone = 'UTC' as $$
declare
    line jsonb := coalesce(to_jsonb(new), to_jsonb(old));
begin
    perform audit_row(
        tg_table_name,
        (select string_agg(line ->> name, ' ' order by position)
            from unnest(tg_argv) with ordinality as names (name, position)),
        case when tg_table_name = 'tenants' then line ->> 'id' else line ->> 'tenant_id' end,
        case when tg_op <> 'INSERT' then auditable(to_jsonb(old)) end,
        case when tg_op <> 'DELETE' then auditable(to_jsonb(new)) end);
    return null;
end
$$;

-- Where tables are distributed by Citus they have no triggers. Every change that Attesto makes is then logged and announced by a pair
-- of calls in its transaction: the rows before it are read with `auditable_rows`, and compared by `note_row_changes` after it.

-- The rows of these tables that belong to a tenant or have this id, as `auditable` shows them. `of_key` null: all rows.
create function auditable_rows(tables text[], of_key text)
    returns table (object text, target text, tenant_id text, line jsonb) language plpgsql stable
    set bytea_output = 'hex' set timezone = 'UTC' as $$
declare
    known record;
begin
    for known in
        select * from (values
            ('tenants', array['id'], 'id', 'id = $1'),
            ('api_keys', array['id'], 'tenant_id', '(tenant_id = $1 or id = $1)'),
            ('apple_credentials', array['tenant_id'], 'tenant_id', 'tenant_id = $1'),
            ('google_credentials', array['tenant_id'], 'tenant_id', 'tenant_id = $1'),
            ('webhook_configs', array['tenant_id', 'callback'], 'tenant_id', 'tenant_id = $1'),
            ('webhook_previous_secrets', array['tenant_id', 'callback', 'number'], 'tenant_id', 'tenant_id = $1'),
            ('webhook_client_certificates', array['tenant_id', 'callback'], 'tenant_id', 'tenant_id = $1'),
            ('webhook_allowed_networks', array['tenant_id', 'network', 'port'], 'tenant_id', 'tenant_id = $1'),
            ('first_seen_keys', array['tenant_id'], 'tenant_id', 'tenant_id = $1'),
            ('webhook_redeliveries', array['id'], 'tenant_id', 'lane = tenant_lane($1) and tenant_id = $1'),
            ('delivery_holds', array['id'], 'null::text', '$1 is null')
        ) as audited (name, identity, tenant, condition)
        where audited.name = any (tables)
    loop
        return query execute format(
            'select %L::text, (select string_agg(stored.line ->> name, '' '' order by position)'
            ' from unnest(%L::text[]) with ordinality as names (name, position)), stored.tenant, auditable(stored.line)'
            ' from (select %s as tenant, to_jsonb(changing) as line from %I changing where $1 is null or %s) stored',
            known.name, known.identity, known.tenant, known.name, known.condition) using of_key;
    end loop;
end
$$;

-- Logs and announces every row that differs from `before`, which `auditable_rows` returned for the same arguments.
create function note_row_changes(before jsonb, tables text[], of_key text) returns void language plpgsql as $$
declare
    change record;
begin
    for change in
        select object, target, coalesce(was.tenant_id, is_now.tenant_id) as tenant, was.line as was, is_now.line as is_now
        from jsonb_to_recordset(before) as was (object text, target text, tenant_id text, line jsonb)
        full join auditable_rows(tables, of_key) is_now using (object, target)
        where was.line is distinct from is_now.line
        order by array_position(tables, object), target
    loop
        -- Redeliveries change while they are worked on; operators insert and delete them.
        if change.object <> 'webhook_redeliveries' or change.was is null or change.is_now is null then
            perform audit_row(change.object, change.target, change.tenant, change.was, change.is_now);
        end if;
        if change.object in ('tenants', 'api_keys', 'apple_credentials', 'google_credentials', 'webhook_configs', 'first_seen_keys') then
            perform pg_notify('attesto_changes', change.object || ':' || change.tenant);
        end if;
    end loop;
end
$$;

-- A transaction can defer its rows of the log to its end. `attesto tenant import` does, because it writes for a long
-- time, and other transactions that add to the log would wait for it. In all other transactions the row is written at once.
create constraint trigger audit_change after insert or delete or update on tenants
    deferrable initially immediate for each row execute function audit_change('id');
-- Not on last_used_at, which no operator changes.
create constraint trigger audit_change
    after insert or delete or update of tenant_id, key_hash, name, environment, revoked_at on api_keys
    deferrable initially immediate for each row execute function audit_change('id');
create constraint trigger audit_change after insert or delete or update on apple_credentials
    deferrable initially immediate for each row execute function audit_change('tenant_id');
create constraint trigger audit_change after insert or delete or update on google_credentials
    deferrable initially immediate for each row execute function audit_change('tenant_id');
create constraint trigger audit_change after insert or delete or update on webhook_configs
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'callback');
create constraint trigger audit_change after insert or delete or update on webhook_previous_secrets
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'callback', 'number');
create constraint trigger audit_change after insert or delete or update on webhook_client_certificates
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'callback');
create constraint trigger audit_change after insert or delete or update on webhook_allowed_networks
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'network', 'port');
create constraint trigger audit_change after insert or delete or update on first_seen_keys
    deferrable initially immediate for each row execute function audit_change('tenant_id');
-- Later changes are the dispatcher's.
create constraint trigger audit_change after insert or delete on webhook_redeliveries
    deferrable initially immediate for each row execute function audit_change('id');
-- A redelivery of one event. Redeliveries of many are logged by their row in webhook_redeliveries.
create trigger audit_change after insert on webhook_deliveries
    for each row
    when (new.requested_by is not null and coalesce(current_setting('attesto.session', true), '') <> '')
    execute function audit_change('id');
create trigger audit_change after insert or delete or update on delivery_holds
    for each row execute function audit_change('id');
