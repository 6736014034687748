-- Detects a FINGERPRINT_KEY that was changed by mistake.

-- One row: the fingerprint of a fixed text under the FINGERPRINT_KEY of the installation. The first replica writes it.
CREATE TABLE key_check (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    fingerprint text NOT NULL
);
