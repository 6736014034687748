-- Lookup by token string, and the cleanup.

-- Serves: POST /bank/tokens/lookup and the invalidation by token string, which find a token by its fingerprint.
CREATE INDEX tokens_by_fingerprint ON tokens (fingerprint);
-- Serves: the cleanup of expired tokens that are still marked valid, and the count of its backlog.
CREATE INDEX tokens_to_expire ON tokens (ends_at) WHERE is_valid;
-- Serves: the deletion of tokens past retention, which counts from their invalidation or expiration.
CREATE INDEX tokens_to_purge ON tokens ((coalesce(invalidated_at, ends_at))) WHERE NOT is_valid;
-- Serves: the cleanup of mints that no replica finished.
CREATE INDEX mints_abandoned ON mints (started_at) WHERE outcome = 'open';
-- Serves: the deletion of mints past retention.
CREATE INDEX mints_to_purge ON mints (finished_at) WHERE outcome <> 'open';

-- The time of the last claim. The cleanup keeps a slot for a day after it, because a late finish of the mint reads the
-- slot.
ALTER TABLE slots ADD COLUMN claimed_at timestamptz NOT NULL DEFAULT '-infinity';
-- Serves: the deletion of slots past retention.
CREATE INDEX slots_to_purge ON slots (claimed_at);

-- The state of the cleanup, in one row: the lease of the partition maintenance, and the result of the last run.
CREATE TABLE maintenance (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    lease_holder uuid,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    last_run_at timestamptz,
    last_success_at timestamptz,
    last_summary jsonb
);
INSERT INTO maintenance DEFAULT VALUES;
