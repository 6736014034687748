-- The time up to which the audit log is complete.

-- One row. Every event before complete_until is committed and visible to whoever sees this value, on a standby too.
-- Transactions with an id from next_xid on began to write after noted_at. When all earlier ones have ended, no event
-- from over 5 s before noted_at can still appear, and complete_until moves there.
CREATE TABLE audit_horizon (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    complete_until timestamptz NOT NULL,
    next_xid xid8 NOT NULL,
    noted_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Returns the time of an event that happens now. After a step back of the clock, it is not before the times of the
-- horizon. The function takes a transaction id before it reads the clock.
CREATE FUNCTION event_time() RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    xid xid8 := pg_current_xact_id();
    now timestamptz := clock_timestamp();
BEGIN
    RETURN greatest(now, (SELECT greatest(complete_until, noted_at) FROM audit_horizon));
END
$$;

-- A statement names the time of an event only if it is that of a handout or a mint.
ALTER TABLE audit_events ALTER COLUMN occurred_at SET DEFAULT event_time();

-- The lock of the last statement waited for the end of all transactions that wrote an event.
INSERT INTO audit_horizon (complete_until, next_xid, noted_at)
VALUES (now() - interval '5 s', pg_current_xact_id(), now());
