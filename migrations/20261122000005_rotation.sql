-- Changing secrets and keys while the service runs.

-- The secret before this one, good until that time.
ALTER TABLE clients
    ADD COLUMN previous_secret_sha256 bytea CHECK (octet_length(previous_secret_sha256) = 32),
    ADD COLUMN previous_until timestamptz NOT NULL DEFAULT '-infinity';

-- Serves: the walk of `keys rotate` through the tokens of a key, and the count of what is left of it.
CREATE INDEX tokens_by_key ON tokens (key_id, id) WHERE is_valid;
