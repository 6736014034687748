-- Sorts text by bytes. An upgrade of the operating system can change its collations, and an index sorted by one of them
-- then misses rows. Comparing bytes is also faster. No result of the service is sorted for people to read.
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
