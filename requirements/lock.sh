#!/bin/sh
# Rewrite the .txt files with the hashes of their pinned versions (maintainers).
# Edit a version in the .in and the .txt file first. Needs uv on PATH.
# Usage: sh requirements/lock.sh [NAME ...]
set -eu
cd "$(dirname "$0")"
command -v uv >/dev/null 2>&1 || { echo "uv is missing. Next: pip install uv" >&2; exit 1; }
all="build cpu dev gpu container-py310 container-train container-serve"
for name in ${*:-$all}; do
    case $name in
        container-py310 | container-train) python=3.10 ;; # the Merlin container
        container-serve) python=3.12 ;;                   # the Triton container
        *) python=3.11 ;;
    esac
    sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' "$name.txt" >"$name.pins"
    {
        echo "# Exact versions with the sha256 of every file of each release. $name.in says why."
        uv pip compile --quiet --no-deps --generate-hashes --no-emit-index-url --no-header \
            --no-annotate --python-version "$python" "$name.pins"
    } >"$name.new"
    mv "$name.new" "$name.txt"
    rm "$name.pins"
done
