-- What the audit trail is asked for, beside a user's events and all events by time. Each index ends
-- in (occurred_at, id): a page begins where the last one ended, in either order, without a sort.

-- Serves: GET /audit/events?tokenId=, what became of a token.
CREATE INDEX audit_events_by_token ON audit_events (token_id, occurred_at, id) WHERE token_id IS NOT NULL;
-- Serves: GET /audit/events?client=, what a client did.
CREATE INDEX audit_events_by_client ON audit_events (client, occurred_at, id) WHERE client IS NOT NULL;
-- Serves: GET /audit/events?fingerprint=, the same for a token that turned up.
CREATE INDEX audit_events_by_fingerprint ON audit_events (fingerprint, occurred_at, id)
    WHERE fingerprint IS NOT NULL;
-- Serves: GET /audit/events?requestId=, what came of a request.
CREATE INDEX audit_events_by_request ON audit_events (request_id, occurred_at, id)
    WHERE request_id IS NOT NULL;
-- Serves: GET /audit/events?kind= of any kind but the one that most events are of, which the index by
-- time finds as soon. A handout does not touch it.
CREATE INDEX audit_events_by_kind ON audit_events (kind, occurred_at, id) WHERE kind <> 'token.reused';
