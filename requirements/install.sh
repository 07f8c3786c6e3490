#!/bin/sh
# Find a Python 3.11 that can run Marquee and let install.py make .venv with it.
# Usage: [PYTHON=/path/to/python3.11] sh requirements/install.sh [--dev|--find]
# --find only prints that Python.
# PYTHON_VERSION=3.10 looks for that one, which the Merlin container's versions need. What pyenv
# built is found too where another version is its global one.
here=$(dirname "$0")
version=${PYTHON_VERSION:-3.11}
is_it="import sys; sys.exit('.'.join(map(str, sys.version_info[:2])) != '$version')"
problem=
pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version.*/bin/python$version
# shellcheck disable=SC2086  # words and a pattern
for python in ${PYTHON:-python$version /usr/bin/python$version python3 python $pyenv}; do
    command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c "$is_it" >/dev/null 2>&1 || continue
    if found=$("$python" "$here/check_system.py"); then
        [ "${1:-}" != --find ] || exec echo "$python"
        exec "$python" "$here/install.py" "$@"
    fi
    problem=${problem:-$found}
done
[ -n "$problem" ] || problem="${PYTHON:-python$version} is not there or is not Python $version. Next: \
apt-get install python$version python$version-venv libpython$version, or make \
PYTHON=/path/to/python$version"
echo "Cannot set up Marquee: $problem" >&2
exit 1
