-- Lets the service run as a role that owns nothing. It creates and drops the months of the audit log through functions
-- of the owner. `migrate --grant` grants the rest: see src/db/service_role.rs.

-- One row: the age, counted from the end of a month, at which the service role may drop the month. NULL = never.
-- Only the owner can change it. `migrate --grant` stores its AUDIT_RETENTION.
CREATE TABLE audit_retention (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    min_age interval
);
INSERT INTO audit_retention DEFAULT VALUES;

-- Creates the partition of the month that contains the given time. Returns false if it exists already.
-- Creates a table and then attaches it, because CREATE TABLE ... PARTITION OF blocks all access to the parent.
-- Roles other than the owner can create only the months from this one to the one in a year.
CREATE OR REPLACE FUNCTION create_audit_partition(month_of timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
-- The bounds are written as text and read again, which the caller's settings could change.
SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    first timestamptz := date_trunc('month', month_of);
    next timestamptz := date_trunc('month', month_of) + interval '1 month';
    partition text := 'audit_events_' || to_char(first, 'YYYY_MM');
BEGIN
    IF NOT pg_has_role(session_user, current_user, 'MEMBER')
       AND NOT coalesce(next > now() AND first <= now() + interval '1 year', false) THEN
        RAISE EXCEPTION 'only the owner of the audit log can create its month of %', month_of
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'audit_events'::regclass AND c.relname = partition) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE audit_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', partition);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT of_month CHECK (occurred_at >= %L AND occurred_at < %L)',
                   partition, first, next);
    EXECUTE format('CREATE TRIGGER audit_events_keep BEFORE TRUNCATE ON %I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', partition);
    EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   partition, first, next);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT of_month', partition);
    RETURN true;
END
$$;

-- Drops a month of the audit log, such as audit_events_2025_01. Returns false if there is none of this name.
-- Drops no table that the owner detached, except one that an earlier version of the cleanup marked to drop it.
-- Roles other than the owner can drop only months that are older than audit_retention.
CREATE FUNCTION drop_audit_partition(partition text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
-- Handouts wait as long as this function waits for the lock of the parent.
SET lock_timeout = '100ms' AS $$
DECLARE
    month_end timestamptz;
BEGIN
    IF NOT coalesce(partition ~ '^audit_events_[0-9]{4}_[0-9]{2}$', false) THEN
        RAISE EXCEPTION '% is no month of the audit log', coalesce(partition, 'NULL')
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- From the name, because two times can have the same name: to_char() writes 2025 BC as 2025.
    month_end := (to_date(right(partition, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC';
    IF NOT pg_has_role(session_user, current_user, 'MEMBER')
       AND NOT coalesce(month_end <= now() - (SELECT min_age FROM audit_retention), false) THEN
        RAISE EXCEPTION '% is kept: it is not older than the AUDIT_RETENTION of the last `token-vendor migrate --grant`',
            partition USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_class c
        LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'audit_events'::regclass
        WHERE c.relname = partition AND c.relkind = 'r'
          AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_events'::regclass)
          AND (i.inhrelid IS NOT NULL OR obj_description(c.oid, 'pg_class')
                  = 'token-vendor: the cleanup detached this month to drop it')) THEN
        RETURN false;
    END IF;
    -- A long read of this month, such as pg_dump, ends the function here, before it asks for the lock of the parent.
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', partition);
    EXECUTE format('DROP TABLE %I', partition);
    RETURN true;
END
$$;

-- Names in a function of the owner mean objects in the schema of the audit log. Without pg_temp at the end, temporary
-- tables of the caller would come first.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOREACH function IN ARRAY '{create_audit_partition(timestamptz), drop_audit_partition(text)}'::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %s, pg_temp', function,
            (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'audit_events'::regclass));
    END LOOP;
END
$$;

REVOKE EXECUTE ON FUNCTION create_audit_partition(timestamptz), drop_audit_partition(text), event_id(), event_time(),
    refuse_change(), count_minutes(timestamptz, timestamptz), count_handout_minutes(timestamptz, timestamptz) FROM PUBLIC;
