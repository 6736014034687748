-- Clients that bearer tokens of the OIDC issuer name. Such a client has a secret that nobody knows.

ALTER TABLE clients
    ADD COLUMN oidc_subject text COLLATE "C" CHECK (octet_length(oidc_subject) BETWEEN 1 AND 1024);

-- Serves: the authentication of a bearer token, which finds the client by its subject. A disabled client does not keep
-- its subject, so that a new client can have it.
CREATE UNIQUE INDEX clients_by_oidc_subject ON clients (oidc_subject) WHERE is_enabled;
