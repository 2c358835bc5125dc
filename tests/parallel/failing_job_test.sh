#!/usr/bin/env bash
# How jobs end: exit code, message (once), and time. tests/parallel/failing_job_test.sh PROGRAM
set -u
program=$1
here=$(cd "$(dirname "$0")" && pwd)
output=$(mktemp)
trap 'rm -f "$output"' EXIT
failures=0

# check RANKS WAY CODE TIMES MESSAGE: the job must end within 20 s with CODE, having printed MESSAGE exactly TIMES times.
check() {
  local ranks=$1 way=$2 code=$3 times=$4 message=$5 start=$SECONDS seen count
  HEARTH_TEST_TIMEOUT=60 "$here/../mpirun.sh" "$ranks" "$program" "$way" >"$output" 2>&1
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
exit $((failures > 0))
