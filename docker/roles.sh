#!/bin/sh
# Runs once, when the database is made: a role for workers, which may neither delete nor change tables. What a
# study is, its name, spec and uuid, only the owner may change: floodsearch makes triggers for that with its tables.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$(cat "${WORKER_PASSWORD_FILE:-/run/secrets/worker_password}")" --set owner="$POSTGRES_USER" --set database="$POSTGRES_DB" <<'SQL'
CREATE ROLE worker LOGIN PASSWORD :'password';
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO worker;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO worker;
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT, INSERT, UPDATE ON TABLES TO worker;
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO worker;
SQL
