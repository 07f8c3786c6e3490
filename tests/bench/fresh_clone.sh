#!/bin/sh
# Bars: a fresh clone's `make demo` ends within 8 minutes on 2 cores, set-up included, and uses
# at most 4 GB of disk. Clones the committed state into a temporary folder; exit status 1 when a
# bar is missed.
#   sh tests/bench/fresh_clone.sh
set -eu
repository=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$repository" "$folder/marquee"
started=$(date +%s)
make -C "$folder/marquee" demo
seconds=$(($(date +%s) - started))
megabytes=$(du -sm "$folder/marquee" | cut -f1)
echo "make demo took $seconds s (bar: 480) and $megabytes MiB of disk (bar: 3814)"
[ "$seconds" -le 480 ] && [ "$megabytes" -le 3814 ]
