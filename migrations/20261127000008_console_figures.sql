-- Figures of replicas and clients for the console's overview.

-- One row per replica, which writes it every 10 s. Rows that are an hour old are deleted.
-- Serves: the replicas seen in the last minute.
CREATE TABLE replicas (
    -- The holder of its mints.
    id uuid PRIMARY KEY,
    host text NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    is_circuit_open boolean NOT NULL,
    -- In seconds.
    clock_skew double precision NOT NULL
);

-- Handouts of one client in one minute, for two hours.
-- Serves: the clients with the most handouts of the last hour. The cleanup writes it together with handout_minutes.
CREATE TABLE client_minutes (
    minute timestamptz,
    client text COLLATE "C",
    minted bigint NOT NULL,
    reused bigint NOT NULL,
    PRIMARY KEY (minute, client)
);

-- Returns the figures of each minute with first <= minute < until, without a client, and then the handouts of each client
-- in these minutes. Both bounds are whole minutes. Reads the events once. The previous version calls
-- count_handout_minutes.
CREATE FUNCTION count_minutes_by_client(first timestamptz, until timestamptz)
RETURNS TABLE (minute timestamptz, client text, minted bigint, reused bigint, failed bigint, unknown bigint,
               latency_p50 integer, latency_p95 integer)
LANGUAGE sql STABLE ROWS 60 SET jit = off AS $$
    WITH counts AS MATERIALIZED (
        SELECT date_bin('1 minute', occurred_at, 'epoch') AS minute, client,
               count(*) FILTER (WHERE kind = 'token.minted') AS minted,
               count(*) FILTER (WHERE kind = 'token.reused') AS reused,
               count(*) FILTER (WHERE kind = 'token.mint_failed') AS failed,
               count(*) FILTER (WHERE kind = 'token.mint_unknown') AS unknown
        FROM audit_events WHERE occurred_at >= first AND occurred_at < until GROUP BY 1, 2
    )
    SELECT m.minute, NULL::text, coalesce(c.minted, 0), coalesce(c.reused, 0), coalesce(c.failed, 0),
           coalesce(c.unknown, 0), l.p50, l.p95
    FROM generate_series(first, until - interval '1 minute', interval '1 minute') AS m(minute)
    LEFT JOIN (
        SELECT c.minute, sum(c.minted)::bigint AS minted, sum(c.reused)::bigint AS reused,
               sum(c.failed)::bigint AS failed, sum(c.unknown)::bigint AS unknown
        FROM counts c GROUP BY 1
    ) c ON c.minute = m.minute
    LEFT JOIN (
        SELECT date_bin('1 minute', finished_at, 'epoch') AS minute,
               percentile_disc(0.5) WITHIN GROUP (ORDER BY latency_ms) AS p50,
               percentile_disc(0.95) WITHIN GROUP (ORDER BY latency_ms) AS p95
        FROM mints WHERE outcome <> 'open' AND finished_at >= first AND finished_at < until GROUP BY 1
    ) l ON l.minute = m.minute
    UNION ALL
    SELECT c.minute, c.client, c.minted, c.reused, c.failed, c.unknown, NULL, NULL
    FROM counts c WHERE c.client IS NOT NULL AND c.minted + c.reused > 0
$$;

REVOKE EXECUTE ON FUNCTION count_minutes_by_client(timestamptz, timestamptz) FROM PUBLIC;
