-- Rotation of client secrets and of token encryption keys.

-- The previous secret of a client, accepted until previous_until.
ALTER TABLE clients
    ADD COLUMN previous_secret_sha256 bytea CHECK (octet_length(previous_secret_sha256) = 32),
    ADD COLUMN previous_until timestamptz NOT NULL DEFAULT '-infinity';

-- Serves: `keys rotate`, which lists the tokens encrypted under a key and counts the tokens left.
CREATE INDEX tokens_by_key ON tokens (key_id, id) WHERE is_valid;
