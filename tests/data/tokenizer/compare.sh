#!/usr/bin/env bash
# compare.sh DRIVER SCRIPT [ARG...]: runs one of the comparisons with $HEARTH_PYTHON. Fetches the real tokenizers first
# (the big one only if it is there already). Exit code 77: skipped, for want of the interpreter or of its packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
driver=$1 script=$2
shift 2
export HEARTH_PYTHON=${HEARTH_PYTHON:-python3} HEARTH_CACHE=${HEARTH_CACHE:-$HOME/.cache/hearth} PYTHONDONTWRITEBYTECODE=1
if ! "$HEARTH_PYTHON" -c 'import tokenizers, sentencepiece, transformers' 2>/dev/null; then
  echo "skipped: $HEARTH_PYTHON lacks tokenizers, sentencepiece or transformers (set HEARTH_PYTHON)"
  exit 77
fi
if [ "$script" = compare.py ]; then
  "$here/../../fetch_artefacts.sh" || echo "some tokenizers could not be fetched; comparing what is there"
  set -- --artefacts "$HEARTH_CACHE/artefacts" "$@"
fi
exec "$HEARTH_PYTHON" "$here/$script" --driver "$driver" "$@"
