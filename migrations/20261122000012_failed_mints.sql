-- Serves: the deletion of mints without a token past retention. A mint with a token is deleted together with its token.
CREATE INDEX mints_without_token_to_purge ON mints (finished_at) WHERE outcome IN ('failed', 'unknown');
