#!/usr/bin/env bash
# compare.sh DRIVER SCRIPT [ARG...]: runs one of the comparisons with $HEARTH_PYTHON. Fetches the artefacts that carry
# templates first (the large one only for --all). Exit code 77: skipped, for want of the interpreter or of its packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
driver=$1 script=$2
shift 2
export HEARTH_PYTHON=${HEARTH_PYTHON:-python3} HEARTH_CACHE=${HEARTH_CACHE:-$HOME/.cache/hearth} PYTHONDONTWRITEBYTECODE=1
if ! "$HEARTH_PYTHON" -c 'import jinja2, transformers' 2>/dev/null; then
  echo "skipped: $HEARTH_PYTHON lacks jinja2 or transformers (set HEARTH_PYTHON)"
  exit 77
fi
if [ "$script" != compare_expressions.py ]; then
  case " $* " in
    *" --all "*)
      "$here/../../fetch_artefacts.sh" chat-templates || { echo "skipped: the templates could not be fetched"; exit 77; } ;;
    *) "$here/../../fetch_artefacts.sh" qwen-tokenizer || echo "a tokenizer could not be fetched; comparing what is there" ;;
  esac
  set -- --artefacts "$HEARTH_CACHE/artefacts" "$@"
fi
exec "$HEARTH_PYTHON" "$here/$script" --driver "$driver" "$@"
