#!/usr/bin/env bash
# Makes the models with transformers in a temporary folder and runs the comparison program on them.
set -eu
program=$1
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HEARTH_PYTHON:?set by tests/run.sh}" "$here/make_models.py" "$folder"
"$program" -- "$folder"
