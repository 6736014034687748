-- The audit log: one row per event, append-only, partitioned by month.

CREATE TABLE audit_events (
    id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    kind text NOT NULL,
    -- '' where there is no user, because a column of the primary key cannot be null.
    user_id text NOT NULL DEFAULT '',
    client text,
    request_id text,
    source_ip text,
    country text,
    bank text,
    access smallint,
    token_id uuid,
    fingerprint text,
    detail jsonb,
    -- The transaction that wrote the row. Sealing reads the rows in this order.
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- Serves: the events of a user by time, and the check whether a replayed handout is recorded.
    PRIMARY KEY (user_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);

-- Serves: all events by time, and the newest event, which seeds the lower bound of the clock at startup.
CREATE INDEX audit_events_by_time ON audit_events (occurred_at, id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

-- Partitions inherit row triggers but not statement triggers, so create_audit_partition adds the second one to each
-- partition.
CREATE TRIGGER audit_events_append_only BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_events_keep BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Creates the partition of the month that contains the given time. Returns false if it exists already.
-- Creates a table and then attaches it, because CREATE TABLE ... PARTITION OF blocks all access to the parent.
CREATE FUNCTION create_audit_partition(month_of timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    first timestamptz := date_trunc('month', month_of AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    next timestamptz := (date_trunc('month', month_of AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC';
    partition text := 'audit_events_' || to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'audit_events'::regclass AND c.relname = partition) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE audit_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', partition);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT of_month CHECK (occurred_at >= %L AND occurred_at < %L)',
                   partition, first, next);
    EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   partition, first, next);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT of_month', partition);
    EXECUTE format('CREATE TRIGGER audit_events_keep BEFORE TRUNCATE ON %I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', partition);
    RETURN true;
END
$$;

SELECT create_audit_partition(now() + make_interval(months => ahead))
FROM generate_series(0, 3) AS ahead;
