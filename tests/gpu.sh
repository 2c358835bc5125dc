#!/usr/bin/env bash
# tests/gpu.sh pack [BUILD] [FOLDER]: gathers what a bare GPU machine needs in FOLDER (default dist/gpu, small enough to
#     carry): the bundle of launch/bundle.sh without LibTorch and the GPU test programs of BUILD (default build).
# tests/gpu.sh [STAGE...]: runs there, from the repository root, with FOLDER in HEARTH_GPU_FOLDER (default dist/gpu):
#     unit        every kernel family against its reference, the NCCL backend and context parallelism on 1, 2 and 4 ranks
#     sanitizer   the kernel tests again under each tool of compute-sanitizer in HEARTH_SANITIZER_TOOLS (default "memcheck racecheck
#                 initcheck")
#     layouts     row 5 over NCCL, 1, 2 and 4 ranks on one device: equal curves, bit-equal repeats, stop + resume; steps as CUDA
#                 graphs against eager ones
#     parallel    every parallel axis over NCCL, up to 8 ranks on one device, fp32 and bf16, against one rank
#     trace       four ranks, traced: the share of each kind of communication that compute covers (read its log); on a
#                 machine with four devices each rank has its own, else they share and the figures are a shared device's
#     hang        a rank killed, stopped, asleep, or leaving out a call over NCCL: the page that names it, in time
#     objectives  loss and gradients of every objective over NCCL, up to 8 ranks on one device, against PyTorch, transformers, PEFT;
#                 whole distillations with the teacher here, on ranks of its own, and offline
#     verbs       hearth doctor, parity, eval, generate under layouts over NCCL; export and import of what it trained
#     precision   fp32 against the CPU, bf16 against fp32, bf16 between layouts
#     bench       hearth bench kernels; the table of gpu_speed.py: hearth bench train beside the peers' scripts of the folder HEARTH_PEER;
#                 HEARTH_SPEED has its other arguments (default "1b 135m"; `gpu_speed.py --help` lists the cases)
#     compiled    hearth bench kernels beside what torch.compile makes of the same operations (compiled_kernels.py)
#     curve       300 steps in bf16 on real text (HEARTH_TEXT, a file of {"text": ...} lines; without it Python code) beside PyTorch's
#     rate        a run with data, metrics and checkpoints on reaches the rate of the bench (gpu_run_vs_bench.py)
# Without a stage: unit, sanitizer, layouts, parallel and precision. A stage that lacks something says so and the next one runs. The
# table comes last; whole logs go to $OUT, or to FOLDER/logs. A stage has at most HEARTH_STAGE_SECONDS (default 240, for sanitizer,
# parallel, hang, objectives, verbs, bench, compiled and curve 600); HEARTH_STAGE_ONLY, a regular expression, picks some of its programs by the names
# in the table.
# shellcheck disable=SC2317  # stages are called by their name
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${HEARTH_GPU_FOLDER:-$root/dist/gpu}
kernel_tests=(rms_norm rope head_norm_rope swiglu cross_entropy distillation dropout adamw embedding gemm attention nf4)
# shellcheck source=tests/gpu_common.sh
source "$root/tests/gpu_common.sh"

stage_unit() {
  local op ranks
  for op in "${kernel_tests[@]}"; do have "$bundle/kernels_${op}_test" && one unit "$op" "$bundle/kernels_${op}_test" -- cuda; done
  for ranks in 1 2 4; do
    have "$bundle/parallel_nccl_comm_test" && one unit "nccl_$ranks" "$root/tests/mpirun.sh" "$ranks" "$bundle/parallel_nccl_comm_test"
    have "$bundle/parallel_context_context_attention_test" &&
      one unit "context_$ranks" "$root/tests/mpirun.sh" "$ranks" "$bundle/parallel_context_context_attention_test" -- cuda
  done
}

stage_sanitizer() {
  local op tool check only
  for tool in "$work/compute-sanitizer/compute-sanitizer" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
    "$(command -v compute-sanitizer || true)"; do
    if [ -x "$tool" ]; then break; fi
  done
  if ! [ -x "$tool" ]; then row sanitizer compute-sanitizer absent 0; return; fi
  for op in "${kernel_tests[@]}"; do
    have "$bundle/kernels_${op}_test" || continue
    for check in ${HEARTH_SANITIZER_TOOLS:-memcheck racecheck initcheck}; do
      # Races are within one kernel: ours are enough, and libraries' take long. initcheck must see every kernel that writes.
      only=()
      if [ "$check" = racecheck ]; then only=(--kernel-regex kns=hearth); fi
      one sanitizer "${op}_$check" "$tool" --tool "$check" "${only[@]}" --target-processes all --error-exitcode 99 \
        "$bundle/kernels_${op}_test" -- cuda
    done
  done
}

stage_layouts() {
  one layouts layouts "$python" "$root/tests/integration/layouts.py"
  one layouts step_graph "$python" "$root/tests/integration/step_graph.py"
}
# Ranks that share a device are ten times faster under the CUDA multi-process service, where there is one.
begin_sharing() {
  mps=no
  export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps
  export CUDA_MODULE_LOADING=EAGER  # hearth train sets it for pipelines
  # Every communicator of every rank has threads of its own for its sockets; one channel keeps them few.
  export NCCL_MIN_NCHANNELS=1 NCCL_MAX_NCHANNELS=1
  mkdir -p "$work/mps"
  nvidia-cuda-mps-control -d 2>/dev/null && mps=yes
  return 0
}
end_sharing() {
  if [ "$mps" = yes ]; then echo quit | nvidia-cuda-mps-control; fi
  unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY CUDA_MODULE_LOADING NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS
}
stage_parallel() {
  local product=$bundle/trainer_layouts_layout_product_test
  begin_sharing
  if have "$product"; then
    export HEARTH_TEST_TIMEOUT=600  # the stage has its own
    one parallel bf16_8_ranks "$root/tests/mpirun.sh" 8 "$product" "--run_test=bf16_*,*bit_identical*" -- cuda verbose
    one parallel fp32_2_ranks "$root/tests/mpirun.sh" 2 "$product" "--run_test=losses_*" -- cuda verbose
    unset HEARTH_TEST_TIMEOUT
  fi
  one parallel parallel_layouts "$python" "$root/tests/integration/parallel_layouts.py"
  end_sharing
}
stage_trace() {
  local devices
  devices=$(nvidia-smi -L 2>/dev/null | wc -l)
  [ "$devices" -ge 4 ] || begin_sharing
  one trace table "$python" "$root/tests/integration/trace.py" table
  [ "$devices" -ge 4 ] || end_sharing
  grep -v '^{' "$logs/trace_table.log"
}
# Without the multi-process service: its clients share a state that CUDA leaves undefined once one of them is killed at work,
# and then a rank was seen to end with a device error before the page named the killed one alone.
stage_hang() {
  export CUDA_MODULE_LOADING=EAGER NCCL_MIN_NCHANNELS=1 NCCL_MAX_NCHANNELS=1
  one hang hang "$python" "$root/tests/integration/hang.py"
  unset CUDA_MODULE_LOADING NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS
}
stage_objectives() {
  local case
  have "$bundle/integration_dump_samples" || return 0
  begin_sharing
  for case in $("$python" "$root/tests/integration/objectives.py" --list); do
    one objectives "$case" "$python" "$root/tests/integration/objectives.py" "$bundle/integration_dump_samples" "$case"
  done
  one objectives distill_runs "$python" "$root/tests/integration/distill_runs.py"
  end_sharing
}
stage_verbs() {
  begin_sharing
  # shellcheck disable=SC2016  # the inner shell expands it
  one verbs doctor bash -c 'text=$("$0/tests/mpirun.sh" 4 "$HEARTH_BINARY" doctor --folder "$1" \
    --set parallel.tensor_model_parallel_size=2); echo "$text"; grep -q "over 4 ranks (nccl): right" <<<"$text"' "$root" "$work"
  one verbs parity "$python" "$root/tests/integration/parity.py"
  one verbs verbs_parallel "$python" "$root/tests/integration/verbs_parallel.py"
  end_sharing
}
stage_precision() { one precision precision "$python" "$root/tests/integration/precision.py"; }

stage_bench() {
  one bench kernels hearth bench kernels
  # shellcheck disable=SC2086  # several words
  one bench speed "$python" "$root/tests/bench/gpu_speed.py" ${HEARTH_SPEED:-1b 135m}
  cat "$logs/bench_kernels.log" 2>/dev/null
  grep -sv '^{' "$logs/bench_speed.log"
}
stage_compiled() {
  one compiled kernels hearth bench kernels
  one compiled compiled "$python" "$root/tests/bench/compiled_kernels.py" --table "$logs/compiled_kernels.log" --seconds "$((stage_end - SECONDS - 30))"
  cat "$logs/compiled_compiled.log" 2>/dev/null
}
stage_curve() {
  have "$bundle/integration_dump_samples" || return 0
  one curve curve "$python" "$root/tests/bench/gpu_curve.py" "$bundle/integration_dump_samples" ${HEARTH_TEXT:+"$HEARTH_TEXT"}
  cat "$logs/curve_curve.log" 2>/dev/null
}
stage_rate() {
  one rate rate "$python" "$root/tests/bench/gpu_run_vs_bench.py"
  cat "$logs/rate_rate.log" 2>/dev/null
}

if [ "${1:-}" = pack ]; then
  shift
  pack "$@"
  exit
fi
unpack
logs=${OUT:-$folder/logs}
mkdir -p "$logs"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader 2>/dev/null || echo "no nvidia-smi here"
[ $# -gt 0 ] || set -- unit sanitizer layouts parallel precision
for stage in "$@"; do
  case $stage in sanitizer | parallel | hang | objectives | verbs | bench | compiled | curve) default=600 ;; *) default=240 ;; esac
  stage_end=$((SECONDS + ${HEARTH_STAGE_SECONDS:-$default}))
  case $stage in
    unit | sanitizer | layouts | parallel | trace | hang | objectives | verbs | precision | bench | compiled | curve | rate) "stage_$stage" ;;
    *) echo "no stage '$stage'" >&2; exit 2 ;;
  esac
done
finish
