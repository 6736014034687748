-- The number of calls that were started, written before each call. A mint with 0 made no call: if no replica finishes
-- it, it failed, and its outcome is not unknown. NULL in a mint of an earlier version, which may have made calls.
ALTER TABLE mints ADD COLUMN started_attempts smallint;
