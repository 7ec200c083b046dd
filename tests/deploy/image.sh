#!/bin/sh
# Builds the image as deploy/Containerfile has it and runs tests/deploy/test_run.py with its files. It is
# for root on Debian, and needs no container engine. Where no registry can be reached, the base is
# made of Debian's packages. BUILD has more options of `buildah build`, IMAGE_DIR is where all is kept.
set -eu
cd "$(dirname "$0")/../.."
directory="${IMAGE_DIR:-$PWD/var/image}"
base=$(sed -n 's/^FROM \(\S*\)$/\1/p' deploy/Containerfile)

missing=$(for program in buildah debootstrap; do command -v $program >/dev/null || echo $program; done)
# shellcheck disable=SC2086 # one word each
[ -z "$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; }
buildah() { command buildah --root "$directory/storage" --runroot "$directory/run" "$@"; }

mkdir -p "$directory"
if ! buildah inspect --type image "$base" >/dev/null 2>&1 && ! buildah pull "$base"; then
    echo "Making the base of Debian's packages, as it can't be had."
    suite=${base##*:}
    rm -rf "$directory/base"
    debootstrap --variant=minbase "${suite%-slim}" "$directory/base"
    rm -rf "$directory"/base/var/cache/apt/* "$directory"/base/var/lib/apt/lists/*
    made=$(buildah from scratch)
    buildah copy --quiet "$made" "$directory/base" /
    buildah commit --quiet --rm "$made" "$base"
    rm -rf "$directory/base"
fi
# shellcheck disable=SC2086 # options
buildah build --isolation chroot --format docker --layers --pull-never ${BUILD:-} \
    --file deploy/Containerfile --tag ingestion:local .
container=$(buildah from --pull-never ingestion:local)
trap 'buildah rm "$container" >/dev/null' EXIT
IMAGE_ROOT=$(buildah mount "$container") .venv/bin/python -m pytest -q tests/deploy/test_run.py
