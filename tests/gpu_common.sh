#!/usr/bin/env bash
# What tests/gpu.sh and tests/multi_gpu.sh share: packing a build, unpacking it on a bare GPU machine, one program at a time with
# its log and its row of the table. Sourced; the caller sets root (the repository), folder (of the packed build), logs and stage_end.
# shellcheck disable=SC2154,SC2034  # the caller's
table=()
failed=0

pack() {
  local build=${1:-$root/build} target=${2:-$folder} program
  set -e
  rm -rf "$target"
  mkdir -p "$target/bin"
  HEARTH_BINARY=$build/hearth "$root/launch/bundle.sh" --output "$target/bundle.tar.gz"
  for program in "$build"/tests/kernels/kernels_*_test "$build"/tests/parallel/parallel_nccl_comm_test \
    "$build/tests/parallel/context/parallel_context_context_attention_test" "$build/tests/trainer/trainer_layouts_layout_product_test" \
    "$build/tests/integration/integration_dump_samples"; do
    if [ -x "$program" ]; then strip -o "$target/bin/$(basename "$program")" "$program"; else echo "not built: $program" >&2; fi
  done
  tar -C "$target" -cz --remove-files bin >"$target/tests.tar.gz"
  # The sanitizer is a part of the toolkit that a GPU machine need not have.
  sanitizer=${HEARTH_SANITIZER_DIR:-${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer}
  if [ -x "$sanitizer/compute-sanitizer" ]; then
    tar -C "$(dirname "$sanitizer")" -cz "$(basename "$sanitizer")" >"$target/sanitizer.tar.gz"
  else
    echo "no compute-sanitizer in $sanitizer (HEARTH_SANITIZER_DIR): that stage needs the GPU machine's own" >&2
  fi
  du -sh "$target"/* >&2
}

row() { table+=("$(printf '%-12s %-34s %-8s %5s s  %s' "$1" "$2" "$3" "$4" "${5:-}")"); }

# one STAGE NAME COMMAND...: runs it, keeps the log, adds a row. 77 is skipped, as in ctest.
one() {
  local stage=$1 name=$2 begin=$SECONDS status=0 word log
  shift 2
  [[ $name =~ ${HEARTH_STAGE_ONLY:-} ]] || return 0
  log=$logs/${stage}_$name.log
  timeout --kill-after=10 "$((stage_end > SECONDS ? stage_end - SECONDS : 1))" "$@" >"$log" 2>&1 || status=$?
  case $status in
    0) word=ok ;;
    77) word=skipped ;;
    124 | 137) word=TIMEOUT ;;
    *) word="FAIL $status" ;;
  esac
  case $word in ok | skipped) ;; *) failed=1; echo "---- $stage $name: $word"; grep -vE '^ok ' "$log" | tail -n 25 ;; esac
  row "$stage" "$name" "$word" "$((SECONDS - begin))" "$(grep -E '^(FAIL|\{|[0-9]+ failed|\*\*\* |ERROR SUMMARY|=+ (ERROR|RACECHECK) SUMMARY)' "$log" | tail -n 1 | cut -c1-110)"
}

have() { [ -e "$1" ] || { row "$stage" "$(basename "$1")" absent 0; return 1; }; }

unpack() {
  [ -e "$folder/bundle.tar.gz" ] || { echo "no $folder/bundle.tar.gz: run tests/gpu.sh pack where Hearth is built" >&2; exit 2; }
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  tar -C "$work" -xzf "$folder/bundle.tar.gz"
  bundle=$(echo "$work"/hearth-*)
  if [ -e "$folder/sanitizer.tar.gz" ]; then tar -C "$work" -xzf "$folder/sanitizer.tar.gz"; fi
  # Test programs find libraries as the bundle's own program does: a wrapper per program.
  local program
  tar -C "$work" -xzf "$folder/tests.tar.gz"
  for program in "$work"/bin/*; do
    mv "$program" "$bundle/bin/"
    sed "s|bin/hearth|bin/$(basename "$program")|" "$bundle/hearth" >"$bundle/$(basename "$program")"
    chmod +x "$bundle/$(basename "$program")"
  done
  export PATH=$bundle:$PATH HEARTH_BINARY=$bundle/hearth HEARTH_TEST_DEVICE=cuda
  python=${HEARTH_PYTHON:-python3}
}

# The table last, and one archive of all logs: few files come back from some machines.
finish() {
  tar -C "$logs" -czf "$work/logs.tar.gz" --exclude=logs.tar.gz . && mv "$work/logs.tar.gz" "$logs/" && find "$logs" -name '*.log' -delete
  echo
  printf '%s\n' "${table[@]}"
  exit "$failed"
}
