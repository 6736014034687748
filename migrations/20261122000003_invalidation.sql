-- Serves: POST /bank/tokens/lookup and the invalidation by token string, which know a token by its
-- fingerprint only.
CREATE INDEX tokens_by_fingerprint ON tokens (fingerprint);
