-- A token has one user, and the key of the trail has that user's events in order: an index of every
-- handout by token was a sixth of what a handout cost. What is left finds whose a token is, or a
-- token string. Handouts need not be looked at for that: they outlive neither the token's record nor
-- the event of its end.
DROP INDEX audit_events_by_token, audit_events_by_fingerprint;

-- Serves: the user of a token that is no longer on record.
CREATE INDEX audit_events_by_token ON audit_events (token_id, user_id)
    WHERE kind <> 'token.reused' AND token_id IS NOT NULL;

-- Serves: the users of a token string that is no longer on record.
CREATE INDEX audit_events_by_fingerprint ON audit_events (fingerprint, user_id)
    WHERE kind <> 'token.reused' AND fingerprint IS NOT NULL;
