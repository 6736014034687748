-- Distributes the tables of token-vendor with Citus. See docs/scaling.md.
--
-- Run it once as the owner, on the coordinator, after `token-vendor migrate` and before the service starts:
--   psql -v ON_ERROR_STOP=1 -v shards=4 -f deploy/citus/distribute.sql
-- It copies existing rows to the workers. Stop the service meanwhile.

\if :{?shards}
\else
  \set shards 2
\endif

BEGIN;
SET LOCAL citus.shard_count = :shards;
-- Lets the tables keep their append-only triggers.
SET LOCAL citus.enable_unsafe_triggers = on;

-- The events of a statement are dated on a worker, which cannot read the horizon of the audit log. The horizon stays at
-- this time, because it follows from transaction ids, which each node counts for itself.
CREATE OR REPLACE FUNCTION event_time() RETURNS timestamptz LANGUAGE plpgsql AS $$
BEGIN
    RETURN clock_timestamp();
END
$$;

-- Citus plans no parameters of a function in SQL.
DO $do$
DECLARE
    definition text;
BEGIN
    FOR definition IN
        SELECT regexp_replace(pg_get_functiondef(oid), 'LANGUAGE sql(.*)AS \$function\$.*', 'LANGUAGE plpgsql\1AS ')
               || quote_literal(E'#variable_conflict use_column\nBEGIN RETURN QUERY' || prosrc || '; END')
        FROM pg_proc WHERE oid IN ('count_handout_minutes(timestamptz, timestamptz)'::regprocedure,
                                   'count_minutes_by_client(timestamptz, timestamptz)'::regprocedure)
    LOOP
        EXECUTE definition;
    END LOOP;
END
$do$;

SELECT create_distributed_table('slots', 'user_id');
SELECT create_distributed_table(name, 'user_id', colocate_with => 'slots')
FROM unnest('{mints, tokens, audit_events}'::text[]) AS name;
-- Every other table is small. Each node has a copy of it.
SELECT create_reference_table(name)
FROM unnest('{_sqlx_migrations, audit_horizon, audit_log, audit_retention, audit_tiles, client_minutes, clients, handout_minutes,
              key_check, maintenance, replicas, upstream_budget}'::text[]) AS name;
COMMIT;
