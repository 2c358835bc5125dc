#!/bin/sh
# with_python.sh SCRIPT [ARG...]: runs it with the interpreter that tests/run.sh prepared; skipped (77) where there is none.
[ -n "$HEARTH_PYTHON" ] || { echo "HEARTH_PYTHON is not set: skipped"; exit 77; }
exec "$HEARTH_PYTHON" "$@"
