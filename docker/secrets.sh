#!/bin/sh
# Makes random passwords and the URLs that hold them, in docker/secrets; what is there stays.
set -eu
umask 077
folder="$(cd "$(dirname "$0")" && pwd)/secrets"
mkdir -p "$folder"
for role in owner worker; do
    [ -s "$folder/${role}_password" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/${role}_password"
done
printf 'postgresql://floodsearch:%s@database/floodsearch\n' "$(cat "$folder/owner_password")" >"$folder/owner_url"
printf 'postgresql://worker:%s@database/floodsearch\n' "$(cat "$folder/worker_password")" >"$folder/worker_url"
chmod 0444 "$folder"/* # the folder is closed; in a container a user of another number reads them
