#!/bin/sh
# Makes the secrets that compose.yaml hands to the containers, once, in a directory that only its
# owner may enter. Keep a copy: without encryption_keys the stored credentials are lost.
set -eu
directory="${1:-$(dirname "$0")/secrets}"
if [ -e "$directory" ]; then
    echo "$directory is there already, and stays as it is." >&2
    exit 1
fi
random() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }
partial="$directory.partial"
rm -rf "$partial"
mkdir -m 700 -p "$partial"
cd "$partial"
password=$(random)
store=$(random)
admin=$(random)
random >secret_key
random >encryption_keys
echo "$password" >database_password
echo "postgres://ingestion:$password@database/ingestion" >database_url
printf '[default]\naws_access_key_id = archive\naws_secret_access_key = %s\n' "$store" >store_credentials
cat >store_identities <<JSON
{"identities": [
    {"name": "administrator", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
     "credentials": [{"accessKey": "administrator", "secretKey": "$admin"}]},
    {"name": "archive", "actions": ["Read:archive", "Write:archive", "List:archive"],
     "credentials": [{"accessKey": "archive", "secretKey": "$store"}]}]}
JSON
# Each container has another user. Nobody else on this machine comes through the directory.
chmod 444 ./*
cd - >/dev/null
mv "$partial" "$directory"
echo "Made $directory."
