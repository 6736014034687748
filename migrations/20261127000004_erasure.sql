-- Lets the owner redact events of a person. Everything else about an event stays: its time, kind, client, access and
-- token id. The id changes, so that nobody can find out by trial which user id an entry of the sealed log contained.
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.user_id = '' AND NEW.detail = '{"redacted": true}' AND NEW.id <> OLD.id
           AND num_nonnulls(NEW.request_id, NEW.source_ip, NEW.country, NEW.bank, NEW.fingerprint) = 0
           AND (NEW.occurred_at, NEW.kind, NEW.client, NEW.access, NEW.token_id, NEW.xid)
               IS NOT DISTINCT FROM (OLD.occurred_at, OLD.kind, OLD.client, OLD.access, OLD.token_id, OLD.xid) THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit trail is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;
