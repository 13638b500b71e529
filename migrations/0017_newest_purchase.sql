-- The newest purchase of a subscription is found from any earlier one, and the user of a purchase is kept: for a purchase made
-- outside the app Google names the user only until it is acknowledged.
-- previous release: works
-- tables: reads_all purchase_links

-- For an index: immutable, and of bounded length, which a token is not.
create function purchase_token_hash(token text) returns bytea language sql immutable strict parallel safe
    as $$ select sha256(convert_to(token, 'UTF8')) $$;

alter table purchase_links
    -- Whether it was ever paid: a purchase that is pending or declined replaces nothing. Null: not known.
    add column is_paid boolean,
    -- The app's own id of the user, of this purchase or of the lapsed one that it follows.
    add column app_user_id text;

-- Finds the purchase that replaces a token.
create index purchase_links_replaces on purchase_links (tenant_id, purchase_token_hash(replaces)) where replaces is not null;
