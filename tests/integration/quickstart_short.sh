#!/usr/bin/env bash
# quickstart_short.sh [--set ...]: launch/quickstart.sh in a temporary folder with a short training: ends well, resumes
# after a Ctrl-C, skips on the second run what is done. The whole quickstart is for people; this is its test.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/hearth-quickstart.XXXXXX")
trap 'rm -rf "$work"' EXIT
export HEARTH_QUICKSTART_ROOT=$work HEARTH_BINARY=${HEARTH_BINARY:?set by tests/run.sh}
quick=("$repository/launch/quickstart.sh" --set training.train_iters=120 --set training.eval_iters=2 "$@")
failed=0
check() {
  local name=$1
  shift
  if "$@"; then echo "ok   $name"; else echo "FAIL $name"; failed=1; fi
}
trained_steps() { grep -c '"lm loss"' "$work/runs/quickstart/metrics.jsonl" 2>/dev/null || true; }

# A Ctrl-C after the first steps (INT to the script; Hearth's own test of mpirun covers the terminal's process group).
"${quick[@]}" >"$work/first.log" 2>&1 &
script=$!
for _ in $(seq 1200); do
  if [ "$(trained_steps)" -ge 2 ] 2>/dev/null || ! kill -0 "$script" 2>/dev/null; then break; fi
  sleep 0.1
done
kill -TERM "$script" 2>/dev/null || true
status=0
wait "$script" || status=$?
check "a stop saves and ends with 75 (got $status)" test "$status" = 75
check "a checkpoint is there" test -n "$(ls "$work/runs/quickstart/checkpoints" 2>/dev/null)"

status=0
"${quick[@]}" >"$work/second.out" 2>"$work/second.log" || status=$?
check "the second run ends well (got $status)" test "$status" = 0
check "it resumed" grep -Eq 'event=train_begin step=[1-9]' "$work/second.log"
check "it printed held-out and unigram loss" grep -q 'for unigrams' "$work/second.log"
check "it exported" test -s "$work/runs/quickstart/export/config.json"
check "it wrote continuations" test -s "$work/second.out"
begin=$SECONDS
status=0
"${quick[@]}" >"$work/third.out" 2>"$work/third.log" || status=$?
check "the third run skips everything (got $status, $((SECONDS - begin)) s)" test "$status" = 0 -a $((SECONDS - begin)) -le 30
if [ "$failed" = 1 ]; then tail -n 40 "$work"/*.log; fi
exit "$failed"
