#!/usr/bin/env bash
# The program as a user meets it: help, exit codes, one error on stderr, doctor, dry runs of every shipped experiment.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
hearth=${HEARTH_BINARY:?HEARTH_BINARY names the program}
mpirun=$here/../mpirun.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
wrong() { echo "FAILED: $*" >&2; exit 1; }

# expect CODE TEXT COMMAND...: the exit code, and TEXT once on stderr, with nothing on stdout for an error.
expect() {
  local code=$1 text=$2 got=0
  shift 2
  "$@" >"$folder/out" 2>"$folder/err" || got=$?
  [ "$got" = "$code" ] || { cat "$folder/err" >&2; wrong "$* ended with $got, expected $code"; }
  [ "$(grep -cF -- "$text" "$folder/err")" = 1 ] || { cat "$folder/err" >&2; wrong "$*: '$text' is not there once"; }
  if [ "$code" != 0 ] && [ -s "$folder/out" ]; then wrong "$*: wrote to stdout"; fi
}
one_error() { [ "$(grep -c '^error: ' "$folder/err")" = 1 ] || { cat "$folder/err" >&2; wrong "not one error line"; }; }

"$hearth" --help | grep -q '^Subcommands:' || wrong "--help"
"$hearth" --version | grep -q '^hearth [0-9]' || wrong "--version"
for verb in $("$hearth" --help | sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\).*/\1/p'); do
  "$hearth" "$verb" --help | grep -q '^Usage: ' || wrong "$verb --help"
done

expect 2 "hearth has no 'trian'; the nearest is 'train'" "$hearth" trian; one_error
expect 2 "A subcommand is required" "$hearth"; one_error
expect 2 "CONFIG is required" "$hearth" train; one_error
expect 3 "there is no experiment file" "$hearth" train "$folder/none.yaml"; one_error
expect 2 "expected --set section.key=value" "$hearth" train "$here/../../configs/smoke.yaml" --set nothing; one_error
printf 'modle: {}\n' >"$folder/bad.yaml"
expect 3 "$folder/bad.yaml:1:1: modle: unknown key; the nearest valid key is model" "$hearth" train "$folder/bad.yaml"; one_error
expect 3 "modle: unknown key" "$mpirun" 2 "$hearth" train "$folder/bad.yaml"; one_error
expect 2 "works on one rank, not on 2" "$mpirun" 2 "$hearth" data inspect "$folder"; one_error
expect 9 "cannot write the results" bash -c "exec '$hearth' --help >/dev/full"; one_error

"$hearth" doctor --folder "$folder" >"$folder/doctor" || wrong "doctor"
grep -q 'a run could start here' "$folder/doctor" || wrong "doctor's verdict"
"$hearth" doctor --json --folder "$folder" | "${HEARTH_PYTHON:-python3}" -c '
import json, sys
report = json.load(sys.stdin)
assert report["ok"] and report["collective"]["ok"] and report["folder"]["writable"], report
assert report["versions"]["mpi"] and report["versions"]["hdf5"] and report["versions"]["libtorch"], report
' || wrong "doctor --json"
"$mpirun" 2 "$hearth" doctor --json --folder "$folder" 2>/dev/null | "${HEARTH_PYTHON:-python3}" -c '
import json, sys
report = json.load(sys.stdin)
assert report["collective"] == {"backend": "mpi", "ranks": 2, "ok": True} and len(report["ranks"]) == 2, report
' || wrong "doctor on two ranks"
touch "$folder/file"
got=0
"$hearth" doctor --folder "$folder/file" >/dev/null 2>&1 || got=$?
[ "$got" = 9 ] || wrong "doctor on an unusable folder ended with $got"

cd "$here/../.."
for config in configs/*.yaml; do
  "$hearth" train "$config" --dry-run >"$folder/dry" || wrong "$config --dry-run"
  grep -q 'param' "$folder/dry" || wrong "$config --dry-run says no parameter count"
  # The resolved file is an experiment file with the same hash.
  "$hearth" train "$config" --print-config >"$folder/resolved.yaml" || wrong "$config --print-config"
  "$hearth" train "$folder/resolved.yaml" --print-config >"$folder/again.yaml" || wrong "$config resolved again"
  [ "$(head -1 "$folder/resolved.yaml" | sed 's/.*hash//')" = "$(head -1 "$folder/again.yaml" | sed 's/.*hash//')" ] ||
    wrong "$config: hash of the resolved file"
done
echo "command line: right"
