-- Nothing here is sorted for people, and the order of an index must outlive an upgrade of the system:
-- with a collation of the system's it may change, and the index then misses rows. Bytes stay as they
-- are, and comparing them takes less time.
ALTER TABLE clients ALTER COLUMN api_key TYPE text COLLATE "C";
ALTER TABLE slots
    ALTER COLUMN user_id TYPE text COLLATE "C",
    ALTER COLUMN country TYPE text COLLATE "C",
    ALTER COLUMN bank TYPE text COLLATE "C";
ALTER TABLE mints
    ALTER COLUMN user_id TYPE text COLLATE "C",
    ALTER COLUMN country TYPE text COLLATE "C",
    ALTER COLUMN bank TYPE text COLLATE "C";
ALTER TABLE tokens
    ALTER COLUMN user_id TYPE text COLLATE "C",
    ALTER COLUMN country TYPE text COLLATE "C",
    ALTER COLUMN bank TYPE text COLLATE "C",
    ALTER COLUMN fingerprint TYPE text COLLATE "C",
    ALTER COLUMN key_id TYPE text COLLATE "C";
ALTER TABLE audit_events
    ALTER COLUMN user_id TYPE text COLLATE "C",
    ALTER COLUMN client TYPE text COLLATE "C",
    ALTER COLUMN request_id TYPE text COLLATE "C",
    ALTER COLUMN kind TYPE text COLLATE "C",
    ALTER COLUMN fingerprint TYPE text COLLATE "C";
