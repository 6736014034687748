-- The record: finding a token that turned up, and clearing away what has ended.

-- Serves: POST /bank/tokens/lookup and the invalidation by token string, which know a token by its
-- fingerprint only.
CREATE INDEX tokens_by_fingerprint ON tokens (fingerprint);
-- Serves: the cleanup of tokens that have expired and are still marked valid, and its backlog.
CREATE INDEX tokens_to_expire ON tokens (ends_at) WHERE is_valid;
-- Serves: the purge of tokens past retention, counted from their end.
CREATE INDEX tokens_to_purge ON tokens ((coalesce(invalidated_at, ends_at))) WHERE NOT is_valid;
-- Serves: the cleanup of mints that nobody finished.
CREATE INDEX mints_abandoned ON mints (started_at) WHERE outcome = 'open';
-- Serves: the purge of mints past retention.
CREATE INDEX mints_to_purge ON mints (finished_at) WHERE outcome <> 'open';

-- When the combination was last claimed for a mint: a slot may go only long after that, since a late
-- finish looks at what it says.
ALTER TABLE slots ADD COLUMN claimed_at timestamptz NOT NULL DEFAULT '-infinity';
-- Serves: the purge of combinations past retention.
CREATE INDEX slots_to_purge ON slots (claimed_at);

-- The one row of the cleanup: who looks after the partitions, and how the last run went.
CREATE TABLE maintenance (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    lease_holder uuid,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    last_run_at timestamptz,
    last_success_at timestamptz,
    last_summary jsonb
);
INSERT INTO maintenance DEFAULT VALUES;
