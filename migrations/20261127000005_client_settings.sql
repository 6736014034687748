-- The limits of a client, the expiry of its secrets, and the times of rotation and last use.

ALTER TABLE clients
    -- The most mints in an hour, over all replicas. NULL = no limit.
    ADD COLUMN mints_per_hour integer CHECK (mints_per_hour > 0),
    -- The most requests per second, per replica. NULL = CLIENT_RATE_LIMIT.
    ADD COLUMN requests_per_second integer CHECK (requests_per_second > 0),
    -- The networks from which the client may call, as CIDRs. NULL = any.
    ADD COLUMN allow_from text[],
    -- The end of all secrets of the client. NULL = never.
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN rotated_at timestamptz,
    -- The day of the last use in UTC. Recorded within a minute of the first use on a day.
    ADD COLUMN last_used_on date,
    -- The mints of a client with mints_per_hour. The element (minute mod 61) + 1 counts the mints of the minute in the
    -- same element of mint_minutes, as in upstream_budget.
    ADD COLUMN mint_minutes bigint[] NOT NULL DEFAULT array_fill(0::bigint, ARRAY[61]),
    ADD COLUMN mint_counts integer[] NOT NULL DEFAULT array_fill(0, ARRAY[61]);
