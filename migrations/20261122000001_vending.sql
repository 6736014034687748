-- Who calls, what was called upstream, what was issued, and what is handed out now.
--
-- No foreign keys: they would tie the retention of one table to that of another.
-- No time that is compared is null: a null would brick its row.
-- The keys of slots, mints and tokens begin with user_id, and no join crosses users: the same
-- statements run with the tables distributed by user_id.

CREATE TABLE clients (
    -- Serves: authentication of every request, by key.
    api_key text PRIMARY KEY CHECK (api_key ~ '^[A-Za-z0-9_-]+$'),
    name text NOT NULL,
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_enabled boolean NOT NULL DEFAULT true,
    disabled_at timestamptz
);

-- One row per combination: which token is handed out, and who may mint the next.
-- country and bank are '' for "any"; access has a bit each for accounts, balances, transactions.
CREATE TABLE slots (
    user_id text NOT NULL,
    country text NOT NULL,
    bank text NOT NULL,
    access smallint NOT NULL,
    -- The token that is handed out, and until when it may be.
    token_id uuid,
    usable_until timestamptz NOT NULL DEFAULT '-infinity',
    -- How many mints have ended in a new pointer: who asked before the number moved shares the mint.
    minted_seq bigint NOT NULL DEFAULT 0,
    -- The mint lease. The epoch grows with every claim and fences the finish.
    lease_holder uuid,
    lease_epoch bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    -- Mints claimed up to this epoch end as invalidated, for void_reason.
    void_epoch bigint NOT NULL DEFAULT 0,
    void_reason text,
    -- Until then the last failure is repeated instead of trying again.
    cooldown_until timestamptz NOT NULL DEFAULT '-infinity',
    failure jsonb,
    -- Serves: the read, the claim, the finish and the failure of a mint.
    PRIMARY KEY (user_id, country, bank, access)
);

-- One row per intent to call the upstream, committed before the call.
CREATE TABLE mints (
    user_id text NOT NULL,
    id uuid NOT NULL,
    country text NOT NULL,
    bank text NOT NULL,
    access smallint NOT NULL,
    lifetime integer NOT NULL,
    lease_epoch bigint NOT NULL,
    -- Which replica.
    holder text NOT NULL,
    client text NOT NULL,
    request_id text NOT NULL,
    source_ip text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    outcome text NOT NULL DEFAULT 'open'
        CHECK (outcome IN ('open', 'minted', 'failed', 'unknown')),
    failure text,
    upstream_status smallint,
    upstream_identifier text,
    attempts smallint NOT NULL DEFAULT 0,
    -- Attempts after which the upstream may have minted without our knowing (a 500, a 502, a lost answer).
    unseen smallint NOT NULL DEFAULT 0,
    latency_ms integer,
    -- Serves: the finish and the failure of a mint.
    PRIMARY KEY (user_id, id)
);
-- Serves: the claim, which marks as unknown what an earlier holder left open.
CREATE INDEX mints_open ON mints (user_id, country, bank, access) WHERE outcome = 'open';

-- One row per issued token; the id is that of its mint.
CREATE TABLE tokens (
    user_id text NOT NULL,
    id uuid NOT NULL,
    country text NOT NULL,
    bank text NOT NULL,
    access smallint NOT NULL,
    lifetime integer NOT NULL,
    issued_at timestamptz NOT NULL,
    -- The upstream's word, for display. Decides nothing.
    expiration timestamptz NOT NULL,
    -- By this database's clock. Decides.
    ends_at timestamptz NOT NULL,
    is_valid boolean NOT NULL,
    -- Set while another token of the combination is handed out instead.
    superseded_at timestamptz,
    invalidated_at timestamptz,
    invalidation_reason text
        CHECK (invalidation_reason IN ('used', 'compromised', 'requested')),
    -- The sealed token string; empty once the token has ended.
    ciphertext bytea NOT NULL,
    key_id text NOT NULL,
    fingerprint text NOT NULL,
    -- Serves: the validity check of every handout.
    PRIMARY KEY (user_id, id)
) WITH (fillfactor = 90);
-- Serves: GET /bank/tokens/{id}, where the user is not known.
CREATE INDEX tokens_by_id ON tokens (id);
-- Serves: the search for another valid token of a combination when its slot points to none.
CREATE INDEX tokens_valid ON tokens (user_id, country, bank, access, ends_at) WHERE is_valid;
-- Serves: GET /bank/tokens/?userId=, newest first, by page.
CREATE INDEX tokens_by_user_and_time ON tokens (user_id, issued_at, id);
-- Serves: GET /bank/tokens/ without a user, newest first, by page.
CREATE INDEX tokens_by_time ON tokens (issued_at, id);

-- The one row of calls to the upstream in the last hour, by minute: cell (minute mod 61) counts the
-- attempts of the minute that stands in `minutes`. 61 cells, so that the hour is covered to its last second.
CREATE TABLE upstream_budget (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    minutes bigint[] NOT NULL,
    attempts integer[] NOT NULL
) WITH (fillfactor = 50);
INSERT INTO upstream_budget (minutes, attempts)
VALUES (array_fill(0::bigint, ARRAY[61]), array_fill(0, ARRAY[61]));
