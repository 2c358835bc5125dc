#!/usr/bin/env bash
# tests/run.sh [ctest argument...]: set-up, build, tests. Without arguments: everything but the labels slow and gpu
# (gpu tests run too where nvidia-smi finds a device). Examples:
#   tests/run.sh -R config            tests whose name has "config"
#   tests/run.sh -L slow              the slow ones
# The last lines are ctest's summary; the whole output is in build/tests.log.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"

"$HEARTH_ROOT/launch/setup.sh" --tests
"$HEARTH_ROOT/launch/build.sh"
build=$HEARTH_ROOT/build
export HEARTH_BINARY=$build/hearth
# Tests compare numbers; a second thread pool per rank on two cores only slows them down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# No test may reach a hub.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

selection=("$@")
if [ $# = 0 ]; then
  excluded='^slow$|^gpu$'
  if nvidia-smi -L >/dev/null 2>&1; then excluded='^slow$'; fi
  selection=(-LE "$excluded")
fi
started=$SECONDS
status=0
# One more than there are cores: tests of hangs wait for deadlines most of their time.
ctest --test-dir "$build" --output-on-failure --timeout 600 -j "${HEARTH_TEST_JOBS:-$(($(nproc) + 1))}" --output-log "$build/tests.log" \
  "${selection[@]}" || status=$?
say "tests: $((SECONDS - started)) s, whole output in $build/tests.log"
grep -E '^[0-9]+% tests passed' "$build/tests.log" | tail -1
exit "$status"
