#!/bin/sh
# Rewrite cpu.txt, dev.txt and build.txt with the hashes of their pinned versions (maintainers).
# Edit a version in the .in and the .txt file first. Needs uv on PATH.
set -eu
cd "$(dirname "$0")"
command -v uv >/dev/null 2>&1 || { echo "uv is missing. Next: pip install uv" >&2; exit 1; }
for name in ${*:-build cpu dev}; do
    sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' "$name.txt" >"$name.pins"
    {
        echo "# Exact versions with the sha256 of every file of each release. $name.in says why."
        uv pip compile --quiet --no-deps --generate-hashes --no-emit-index-url --no-header \
            --no-annotate --python-version 3.11 "$name.pins"
    } >"$name.new"
    mv "$name.new" "$name.txt"
    rm "$name.pins"
done
