-- Figures per minute for the console's overview, so that a page view does not count a day of events.

-- Serves: the figures of the last hour and day. The cleanup adds a minute when it is a minute old, because later events
-- may still be committing until then.
CREATE TABLE handout_minutes (
    minute timestamptz PRIMARY KEY,
    minted bigint NOT NULL,
    reused bigint NOT NULL,
    failed bigint NOT NULL,
    unknown bigint NOT NULL,
    -- The upstream latency of the mints that finished in that minute, in milliseconds.
    latency_p50 integer,
    latency_p95 integer
);

-- Returns the figures of each minute with first <= minute < until. Both bounds are whole minutes.
-- Uses the indexes audit_events_by_time and mints_to_purge. Switches jit off: the planner does not know the bounds and
-- expects a scan of the whole audit log, and compiling the statement would take longer than running it.
CREATE FUNCTION count_minutes(first timestamptz, until timestamptz) RETURNS SETOF handout_minutes
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
