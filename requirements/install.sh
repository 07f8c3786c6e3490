#!/bin/sh
# Find a Python 3.11 that can run Marquee and let install.py make .venv with it.
# Usage: [PYTHON=/path/to/python3.11] sh requirements/install.sh [--dev]
here=$(dirname "$0")
is_311='import sys; sys.exit(sys.version_info[:2] != (3, 11))'
problem=
for python in ${PYTHON:-python3.11 /usr/bin/python3.11 python3 python}; do
    command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c "$is_311" >/dev/null 2>&1 || continue
    if found=$("$python" "$here/check_system.py"); then
        exec "$python" "$here/install.py" "$@"
    fi
    problem=${problem:-$found}
done
[ -n "$problem" ] || problem="${PYTHON:-python3.11} is not there or is not Python 3.11. Next: apt-get \
install python3.11 python3.11-venv libpython3.11, or make PYTHON=/path/to/python3.11"
echo "Cannot set up Marquee: $problem" >&2
exit 1
