#!/bin/sh
# Installs what the tests need from npm beside its package.json, again when that changes.
# Nothing is skipped without it: the tests that need it fail and say the same.
set -u
cd "$(dirname "$0")/servers/node" || exit 1
stamp=node_modules/.installed
cmp -s package.json "$stamp" && exit 0
echo "Installing tests/servers/node/package.json"
npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error &&
    cp package.json "$stamp" && exit 0
echo "Tests that need emulate will fail. Is there a network, and Node 20 with npm?"
