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
assert report["ok"] and report["collectives"][0]["ok"] and report["folder"]["writable"], report
assert report["versions"]["mpi"] and report["versions"]["hdf5"] and report["versions"]["libtorch"], report
' || wrong "doctor --json"
"$mpirun" 2 "$hearth" doctor --json --folder "$folder" 2>/dev/null | "${HEARTH_PYTHON:-python3}" -c '
import json, sys
report = json.load(sys.stdin)
assert report["collectives"][0]["backend"] == "mpi" and report["collectives"][0]["ranks"] == 2 and len(report["ranks"]) == 2, report
' || wrong "doctor on two ranks"
# The map of ranks: tp is the fastest axis, so neighbours share a tensor-parallel group.
"$mpirun" 4 "$hearth" doctor --folder "$folder" --set parallel.tensor_model_parallel_size=2 \
  --set parallel.pipeline_model_parallel_size=2 2>/dev/null | grep '^rank' | sed 's/ on .*, device [^,]*, /: /' >"$folder/map"
printf 'rank           %s\n' '0: pp 0 tp 0' '1: pp 0 tp 1' '2: pp 1 tp 0' '3: pp 1 tp 1' | cmp -s - "$folder/map" ||
  { cat "$folder/map" >&2; wrong "doctor's map"; }
"$mpirun" 2 "$hearth" doctor --json --folder "$folder" --config "$here/../../configs/smoke.yaml" 2>/dev/null | "${HEARTH_PYTHON:-python3}" -c '
import json, sys
report = json.load(sys.stdin)
assert [rank["at"] for rank in report["ranks"]] == ["dp 0", "dp 1"] and report["placement_warnings"] == [], report
' || wrong "doctor --config"
expect 3 "is not a multiple of" "$hearth" doctor --folder "$folder" --set parallel.tensor_model_parallel_size=2; one_error
touch "$folder/file"
got=0
"$hearth" doctor --folder "$folder/file" >/dev/null 2>&1 || got=$?
[ "$got" = 9 ] || wrong "doctor on an unusable folder ended with $got"

cd "$here/../.."
for config in configs/*.yaml; do
  ranks=()  # where the layout needs more than one
  [ "$config" != configs/pretrain-8b.yaml ] || ranks=("$mpirun" 8)
  "${ranks[@]}" "$hearth" train "$config" --dry-run >"$folder/dry" || wrong "$config --dry-run"
  grep -q 'param' "$folder/dry" || wrong "$config --dry-run says no parameter count"
  # The resolved file is an experiment file with the same hash.
  "$hearth" train "$config" --print-config >"$folder/resolved.yaml" || wrong "$config --print-config"
  "$hearth" train "$folder/resolved.yaml" --print-config >"$folder/again.yaml" || wrong "$config resolved again"
  [ "$(head -1 "$folder/resolved.yaml" | sed 's/.*hash//')" = "$(head -1 "$folder/again.yaml" | sed 's/.*hash//')" ] ||
    wrong "$config: hash of the resolved file"
done

# plan: any number of ranks on one machine.
one_b=configs/pretrain-1b.yaml
expect 2 "works on one rank, not on 2" "$mpirun" 2 "$hearth" plan $one_b --ranks 2; one_error
expect 2 "--ranks is required" "$hearth" plan $one_b; one_error
expect 3 "must be a multiple of micro_batch_size 4 x data-parallel size 7" "$hearth" plan $one_b --ranks 7; one_error
expect 2 "an SVG goes to a file" "$hearth" plan $one_b --ranks 8 --timeline svg; one_error
"$hearth" plan $one_b --ranks 1024 --set parallel.pipeline_model_parallel_size=4 --set parallel.tensor_model_parallel_size=8 \
  --set training.global_batch_size=1024 --json | "${HEARTH_PYTHON:-python3}" -c '
import json, sys
plan = json.load(sys.stdin)
assert plan["layout"] == {"pp": 4, "dp": 32, "cp": 1, "ep": 1, "tp": 8, "ranks": 1024, "zero_stage": 1}, plan
stages = plan["pipeline_ranks"]
assert sum(sum(s["layers"]) for s in stages) == 16 and stages[0]["embedding"] and stages[3]["head"], plan
assert [s["peak_activations"] for s in stages] == [4, 3, 2, 1], plan
assert all(s["bytes_sent_per_step"]["tensor"] > s["bytes_sent_per_step"]["pipeline"] > 0 for s in stages), plan
assert all(s["memory_bytes"]["total"] > 0 for s in stages) and 0 < plan["bubble_fraction"] < 1, plan
' || wrong "plan --json"
for schedule in 1f1b zb_h1 zbv dualpipev; do
  "$hearth" plan $one_b --ranks 4 --set parallel.pipeline_model_parallel_size=4 --set parallel.pipeline_schedule=$schedule \
    --timeline text >"$folder/plan" || wrong "plan $schedule"
  [ "$(grep -c '^  [0-3] | .*F63' "$folder/plan")" = 4 ] || wrong "plan $schedule: no line of 64 micro-batches for each rank"
done
"$hearth" plan $one_b --ranks 4 --set parallel.pipeline_model_parallel_size=4 --timeline svg --output "$folder/plan.svg" >/dev/null ||
  wrong "plan --timeline svg"
"${HEARTH_PYTHON:-python3}" -c '
import sys, xml.dom.minidom
boxes = xml.dom.minidom.parse(sys.argv[1]).getElementsByTagName("title")
assert len(boxes) == 2 + 2 * 4 * 64, len(boxes)
' "$folder/plan.svg" || wrong "the SVG"
echo "command line: right"
