#!/usr/bin/env bash
# run_script.sh SCRIPT [ARG...]: a script of this folder with the interpreter that its name asks for.
set -eu
script=$(dirname "$0")/$1
shift
case $script in
  *.py) exec "${HEARTH_PYTHON:?set by tests/run.sh}" "$script" "$@" ;;
  *) exec "$script" "$@" ;;
esac
