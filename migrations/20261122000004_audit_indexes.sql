-- One index per filter of the audit log. Each index ends in (occurred_at, id) for keyset pagination in both orders
-- without a sort.

-- Serves: GET /audit/events?tokenId=.
CREATE INDEX audit_events_by_token ON audit_events (token_id, occurred_at, id) WHERE token_id IS NOT NULL;
-- Serves: GET /audit/events?client=.
CREATE INDEX audit_events_by_client ON audit_events (client, occurred_at, id) WHERE client IS NOT NULL;
-- Serves: GET /audit/events?fingerprint=.
CREATE INDEX audit_events_by_fingerprint ON audit_events (fingerprint, occurred_at, id)
    WHERE fingerprint IS NOT NULL;
-- Serves: GET /audit/events?requestId=.
CREATE INDEX audit_events_by_request ON audit_events (request_id, occurred_at, id)
    WHERE request_id IS NOT NULL;
-- Serves: GET /audit/events?kind= of every kind except token.reused. Most events are of that kind, so the index by time
-- finds them as fast. Leaving them out keeps this index off the path of a handout.
CREATE INDEX audit_events_by_kind ON audit_events (kind, occurred_at, id) WHERE kind <> 'token.reused';
