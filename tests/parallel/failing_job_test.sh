#!/usr/bin/env bash
# How jobs end: exit code, message (once), and time. tests/parallel/failing_job_test.sh PROGRAM
set -u
program=$1
here=$(cd "$(dirname "$0")" && pwd)
output=$(mktemp)
trap 'rm -f "$output"' EXIT
failures=0

# check RANKS WAY CODE TIMES MESSAGE: the job must end within 20 s with CODE, having printed MESSAGE exactly TIMES times.
with=""
check() {
  local ranks=$1 way=$2 code=$3 times=$4 message=$5 start=$SECONDS seen count
  HEARTH_TEST_TIMEOUT=60 "$here/../mpirun.sh" "$ranks" "$program" "$way" 1 ${with:+"$with"} >"$output" 2>&1
  seen=$?
  count=$(grep -c -F -- "$message" "$output")
  if [ "$seen" -ne "$code" ] || [ "$count" -ne "$times" ] || [ $((SECONDS - start)) -gt 20 ]; then
    echo "FAILED: $way on $ranks ranks: code $seen (want $code), '$message' $count times (want $times)," \
      "$((SECONDS - start)) s (want at most 20); output:"
    cat "$output"
    failures=$((failures + 1))
  else
    echo "ok: $way on $ranks ranks: code $seen, $((SECONDS - start)) s"
  fi
}

check 3 nothing 0 0 "error:"
check 3 all_throw 3 1 "error: the same on all ranks"
check 3 all_throw 3 0 "MPI_ABORT"
check 2 each_throws 4 1 "error: trouble of rank 1"
check 3 one_throws 4 1 "error: shard 7 is torn"
check 2 one_hangs 7 1 "all_reduce 'grad.bucket3' (group dp, call 2, 12000000 bytes fp32): rank 1 has not entered it after 2.0 s"
check 3 one_misses_a_vote 7 1 "all_gather 'checkpoint.commit': rank 1 has not entered it after 2.0 s"
check 3 one_killed 137 0 "error: never printed"
check 2 calls_differ 7 2 "ranks make different calls"

# page RANKS WAY VICTIM CODE TEXT...: the job must end with CODE, within its deadline of 2 s and 5 s more, start-up and
# two seconds of a loaded machine aside, after exactly one page, with every TEXT on it.
page() {
  local ranks=$1 way=$2 victim=$3 code=$4 start=$SECONDS seen text trouble=""
  shift 4
  HEARTH_TEST_TIMEOUT=60 "$here/../mpirun.sh" "$ranks" "$program" "$way" "$victim" "$folder/hang" >"$output" 2>&1
  seen=$?
  [ "$seen" -eq "$code" ] || trouble="code $seen (want $code); "
  [ $((SECONDS - start)) -le 10 ] || trouble+="$((SECONDS - start)) s; "
  [ "$(grep -c '^==== the job does not go on' "$output")" -eq 1 ] || trouble+="not one page; "
  [ "$(grep -c '^error: ' "$output")" -le 1 ] || trouble+="several errors; "
  for text in "$@"; do
    sed -n '/^==== the job/,/^====$/p' "$output" | grep -q -E -- "$text" || trouble+="no '$text'; "
  done
  if [ -n "$trouble" ]; then
    echo "FAILED: page of $way (rank $victim) on $ranks ranks: $trouble output:"
    cat "$output"
    failures=$((failures + 1))
  else
    echo "ok: page of $way (rank $victim) on $ranks ranks, $((SECONDS - start)) s"
  fi
}

folder=$(mktemp -d)
trap 'rm -rf "$output" "$folder"' EXIT
waits="all_reduce 'grad.bucket3' \(group dp of ranks 0.*, call 2, 12000000 bytes fp32\)"
for ranks in 2 8; do
  for victim in 1 0; do
    page "$ranks" one_hangs "$victim" 7 "rank $victim is missing" "rank $victim .* is alive, but in no call; its last finished call is all_reduce 'grad.bucket2'" "rank $victim has not entered $waits"
    page "$ranks" one_killed "$victim" 137 "rank $victim does not answer ====" "rank $victim .* its process has ended; its last finished call is all_reduce 'grad.bucket2'" "rank $victim has not finished $waits"
  done
  page "$ranks" one_stopped 1 7 "rank 1 does not answer ====" "its process is stopped" "rank 1 has not finished $waits"
  page "$ranks" one_exits 1 1 "rank 1 does not answer ====" "its process has ended"
  page "$ranks" one_skips_a_bucket 1 7 "rank 1 is out of order" "rank 1 skipped all_reduce 'grad.bucket0' \(group dp\)"
  page "$ranks" one_skips_the_totals 1 7 "rank 1 is out of order" "rank 1 skipped all_reduce 'step.totals' \\(group all\\)" "rank 1 has not entered all_reduce 'step.totals' \(group all"
done
for ranks in 3 4; do
  page "$ranks" printer_dies 1 137 "rank 1 does not answer ====" "rank 1 has not finished $waits"
done
page 3 one_misses_a_vote 1 7 "rank 1 is missing" "rank 1 has not entered all_gather 'checkpoint.commit'"
with="$folder/hang"
check 3 nothing 0 0 "error:"
[ ! -e "$with" ] || { echo "FAILED: $with is left after a good end"; failures=$((failures + 1)); }
check 3 one_throws 4 1 "error: shard 7 is torn"
check 3 one_throws 4 0 "==== the job"
check 3 all_throw 3 0 "==== the job"
check 3 preempted 75 0 "==== the job"
exit $((failures > 0))
