-- The sealed audit log: a Merkle tree over the events in the order of (occurred_at, id).

-- The state of the log, in one row. A sealer locks it until its transaction ends.
CREATE TABLE audit_log (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    -- The number of sealed events, which is the size of the tree.
    size bigint NOT NULL DEFAULT 0,
    -- The last sealed event. Every event up to it is sealed, every later one is not.
    last_at timestamptz NOT NULL DEFAULT 'epoch',
    last_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    -- The signed head of the tree (c2sp.org/tlog-checkpoint).
    checkpoint text,
    sealed_at timestamptz
);
INSERT INTO audit_log DEFAULT VALUES;

-- The tiles of the tree (c2sp.org/tlog-tiles): up to 256 hashes of 32 bytes. Only the last tile of a level has fewer.
CREATE TABLE audit_tiles (
    level smallint NOT NULL,
    n bigint NOT NULL,
    hashes bytea NOT NULL,
    -- The event of the first hash. Set on level 0.
    first_at timestamptz,
    first_id uuid,
    -- Serves: the reads of a tile.
    PRIMARY KEY (level, n)
);
-- Hashes cannot be compressed.
ALTER TABLE audit_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;
-- Serves: the search for the tile of an event.
CREATE INDEX audit_tiles_by_first_event ON audit_tiles (first_at, first_id) WHERE level = 0;

-- Returns a UUIDv7 of this moment (RFC 9562, section 5.7). It contains the time, so the index by time finds the event of
-- an id. An index by id would double the time of an expiration.
CREATE FUNCTION event_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    -- 48 bits of milliseconds, the version, and the rest of a random UUID.
    SELECT (lpad(to_hex((date_part('epoch', clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
            || substr(gen_random_uuid()::text, 16))::uuid
$$;
ALTER TABLE audit_events ALTER COLUMN id SET DEFAULT event_id();
-- Serves: the search by id for events of earlier versions, whose ids contain no time. A handout is left out by the first
-- condition, which costs it nothing.
CREATE INDEX audit_events_by_random_id ON audit_events (id)
    WHERE kind <> 'token.reused' AND substr(id::text, 15, 1) <> '7';
