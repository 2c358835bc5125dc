#!/bin/sh
# Runs compare_conversations.py with the interpreter that tests/run.sh prepared; skipped (77) where there is none.
[ -n "$HEARTH_PYTHON" ] || { echo "HEARTH_PYTHON is not set: skipped"; exit 77; }
exec "$HEARTH_PYTHON" "$(dirname "$0")/compare_conversations.py" "$@"
