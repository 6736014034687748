-- Most events are handouts of a token that is on record already. They are found by their token: the
-- index by fingerprint needs to know but the others, which name every token of a fingerprint, and a
-- handout, whose cost is mostly that of its indexes, no longer touches it.
DROP INDEX audit_events_by_fingerprint;
-- Serves: GET /audit/events?fingerprint=, which tokens those were, also when their records are gone.
CREATE INDEX audit_events_by_fingerprint ON audit_events (fingerprint, token_id)
    WHERE kind <> 'token.reused' AND fingerprint IS NOT NULL;
