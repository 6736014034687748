-- Clients, slots, mints, tokens and the hourly budget of upstream calls.
--
-- There are no foreign keys, because they would tie the retention of one table to that of another.
-- Every time that a statement compares is NOT NULL, because a null would make its row unusable.
-- The keys of slots, mints and tokens begin with user_id, and no join crosses users, so that the tables can be
-- distributed by user_id.

CREATE TABLE clients (
    -- Serves: the authentication of every request, which finds the client by its key.
    api_key text PRIMARY KEY CHECK (api_key ~ '^[A-Za-z0-9_-]+$'),
    name text NOT NULL,
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_enabled boolean NOT NULL DEFAULT true,
    disabled_at timestamptz
);

-- One row per combination. It points to the current token and holds the mint lease.
-- country and bank are '' for "any". access is three bits: accounts 1, balances 2, transactions 4.
CREATE TABLE slots (
    user_id text NOT NULL,
    country text NOT NULL,
    bank text NOT NULL,
    access smallint NOT NULL,
    -- The current token, and the end of the time in which it may be handed out.
    token_id uuid,
    usable_until timestamptz NOT NULL DEFAULT '-infinity',
    -- The number of mints that set token_id. A no-cache request that read an older number shares the newer mint.
    minted_seq bigint NOT NULL DEFAULT 0,
    -- The mint lease. lease_holder is the id of the mint. Every claim adds 1 to lease_epoch, which fences the finish.
    lease_holder uuid,
    lease_epoch bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    -- A mint claimed at this epoch or before it records its token as invalidated, with void_reason.
    void_epoch bigint NOT NULL DEFAULT 0,
    void_reason text,
    -- Requests before this time get the stored failure instead of a new mint.
    cooldown_until timestamptz NOT NULL DEFAULT '-infinity',
    failure jsonb,
    -- Serves: the read of a slot, and the claim, finish and failure of a mint.
    PRIMARY KEY (user_id, country, bank, access)
);

-- One row per mint. It is committed before the upstream is called.
CREATE TABLE mints (
    user_id text NOT NULL,
    id uuid NOT NULL,
    country text NOT NULL,
    bank text NOT NULL,
    access smallint NOT NULL,
    lifetime integer NOT NULL,
    lease_epoch bigint NOT NULL,
    -- The replica that mints.
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
    -- Attempts that may have minted a token that the service did not receive (a 500, a 502, a lost answer).
    unseen smallint NOT NULL DEFAULT 0,
    latency_ms integer,
    -- Serves: the finish and the failure of a mint.
    PRIMARY KEY (user_id, id)
);
-- Serves: the claim, which marks the open mints of an earlier holder as unknown.
CREATE INDEX mints_open ON mints (user_id, country, bank, access) WHERE outcome = 'open';

-- One row per issued token. The id is the id of its mint.
CREATE TABLE tokens (
    user_id text NOT NULL,
    id uuid NOT NULL,
    country text NOT NULL,
    bank text NOT NULL,
    access smallint NOT NULL,
    lifetime integer NOT NULL,
    issued_at timestamptz NOT NULL,
    -- The upstream's expiration. It is only displayed.
    expiration timestamptz NOT NULL,
    -- The expiration by this database's clock. It decides whether the token is valid.
    ends_at timestamptz NOT NULL,
    is_valid boolean NOT NULL,
    -- Set while the slot points to another token of the combination.
    superseded_at timestamptz,
    invalidated_at timestamptz,
    invalidation_reason text
        CHECK (invalidation_reason IN ('used', 'compromised', 'requested')),
    -- The encrypted token string. Empty after the token was invalidated or expired.
    ciphertext bytea NOT NULL,
    key_id text NOT NULL,
    fingerprint text NOT NULL,
    -- Serves: the validity check of every handout.
    PRIMARY KEY (user_id, id)
) WITH (fillfactor = 90);
-- Serves: GET /bank/tokens/{id}, which does not know the user.
CREATE INDEX tokens_by_id ON tokens (id);
-- Serves: the search for another valid token of a combination whose slot points to no usable token.
CREATE INDEX tokens_valid ON tokens (user_id, country, bank, access, ends_at) WHERE is_valid;
-- Serves: GET /bank/tokens/?userId=, a page of one user's tokens, newest first.
CREATE INDEX tokens_by_user_and_time ON tokens (user_id, issued_at, id);
-- Serves: GET /bank/tokens/ without userId, a page of all tokens, newest first.
CREATE INDEX tokens_by_time ON tokens (issued_at, id);

-- The budget of upstream calls, in one row. The array element (minute mod 61) + 1 counts the attempts of the minute
-- stored in the same element of `minutes`. There are 61 elements: the current minute and the 60 before it, so that the
-- window is never shorter than an hour.
CREATE TABLE upstream_budget (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    minutes bigint[] NOT NULL,
    attempts integer[] NOT NULL
) WITH (fillfactor = 50);
INSERT INTO upstream_budget (minutes, attempts)
VALUES (array_fill(0::bigint, ARRAY[61]), array_fill(0, ARRAY[61]));
