-- Returns the figures of each minute with first <= minute < until, as count_minutes does. It names its columns: a
-- function that returns the row type of handout_minutes fails when a later migration adds a column to that table. The
-- previous version still calls count_minutes.
CREATE FUNCTION count_handout_minutes(first timestamptz, until timestamptz)
RETURNS TABLE (minute timestamptz, minted bigint, reused bigint, failed bigint, unknown bigint,
               latency_p50 integer, latency_p95 integer)
LANGUAGE sql STABLE ROWS 60 SET jit = off AS $$
    SELECT m.minute, coalesce(e.minted, 0), coalesce(e.reused, 0), coalesce(e.failed, 0), coalesce(e.unknown, 0),
           l.p50, l.p95
    FROM generate_series(first, until - interval '1 minute', interval '1 minute') AS m(minute)
    LEFT JOIN (
        SELECT date_bin('1 minute', occurred_at, 'epoch') AS minute,
               count(*) FILTER (WHERE kind = 'token.minted') AS minted,
               count(*) FILTER (WHERE kind = 'token.reused') AS reused,
               count(*) FILTER (WHERE kind = 'token.mint_failed') AS failed,
               count(*) FILTER (WHERE kind = 'token.mint_unknown') AS unknown
        FROM audit_events WHERE occurred_at >= first AND occurred_at < until GROUP BY 1
    ) e ON e.minute = m.minute
    LEFT JOIN (
        SELECT date_bin('1 minute', finished_at, 'epoch') AS minute,
               percentile_disc(0.5) WITHIN GROUP (ORDER BY latency_ms) AS p50,
               percentile_disc(0.95) WITHIN GROUP (ORDER BY latency_ms) AS p95
        FROM mints WHERE outcome <> 'open' AND finished_at >= first AND finished_at < until GROUP BY 1
    ) l ON l.minute = m.minute
$$;
