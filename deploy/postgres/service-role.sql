-- Creates the role of the service. `token-vendor migrate --grant token_vendor_service` gives it its privileges.
\set password `cat /run/secrets/service-password`
CREATE ROLE token_vendor_service LOGIN PASSWORD :'password';
