#!/usr/bin/env bash
# tests/multi_gpu.sh [STAGE...]: on a machine of several GPUs with NVLink, one rank a GPU, with what `tests/gpu.sh pack` packed
# (HEARTH_GPU_FOLDER, default dist/gpu):
#     correctness  every layout that fits on 2, 4, 8 GPUs against one rank, fp32 and bf16, in one process and as whole runs; a run whose
#                  layout and number of GPUs change at every resume
#     bandwidth    hearth bench collectives: our collectives beside NCCL's own
#     fault        a rank killed, a rank stopped: the page that names it, in time, and every process gone
#     scaling      tests/bench/gpu_scaling.py: hearth bench train on 1, 2, 4, 8 GPUs beside PyTorch's DDP and FSDP2; HEARTH_SCALING has
#                  its arguments (default: its own, with all GPUs of the machine)
# Without a stage: all of them. Each ends within HEARTH_STAGE_SECONDS (default 500), and scaling goes on where an earlier call ended
# if that call's scaling.jsonl lies in HEARTH_GPU_FOLDER. The table comes last; logs and scaling.jsonl go to $OUT, or to FOLDER/logs.
# HEARTH_STAGE_ONLY, a regular expression, picks some of the programs by the names in the table.
# NVLink multicast stays as the machine has it: nothing here sets NCCL_NVLS_ENABLE.
# shellcheck disable=SC2317  # stages are called by their name
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${HEARTH_GPU_FOLDER:-$root/dist/gpu}
# shellcheck source=tests/gpu_common.sh
source "$root/tests/gpu_common.sh"

# Powers of two up to the number of GPUs, from 2.
counts() { local n; for n in 2 4 8; do if [ "$n" -le "$devices" ]; then echo "$n"; fi; done; }

stage_correctness() {
  local product=$bundle/trainer_layouts_layout_product_test ranks
  for ranks in $(counts); do
    have "$bundle/parallel_nccl_comm_test" && one correctness "nccl_$ranks" "$root/tests/mpirun.sh" "$ranks" "$bundle/parallel_nccl_comm_test"
    have "$product" || continue
    one correctness "bf16_$ranks" "$root/tests/mpirun.sh" "$ranks" "$product" "--run_test=bf16_*,*gradients_in_bf16*,*bit_identical*" -- cuda verbose
    one correctness "fp32_$ranks" "$root/tests/mpirun.sh" "$ranks" "$product" "--run_test=losses_*" -- cuda verbose
  done
  for ranks in $(counts); do
    one correctness "runs_$ranks" "$python" "$root/tests/integration/parallel_layouts.py" --ranks "$ranks"
  done
  one correctness resume "$python" "$root/tests/integration/resume_layouts.py" tied.fp32.two qwen3.bf16.two
}
stage_bandwidth() {
  local ranks
  for ranks in $(counts); do
    one bandwidth "collectives_$ranks" "$root/tests/mpirun.sh" "$ranks" "$bundle/hearth" bench collectives
    cat "$logs/bandwidth_collectives_$ranks.log" 2>/dev/null
  done
}
stage_fault() {
  export CUDA_MODULE_LOADING=EAGER  # hearth train sets it for pipelines
  one fault hang "$python" "$root/tests/integration/hang.py" "pp kill" "pp stop" "dp kill" "dp stop"
  unset CUDA_MODULE_LOADING
}
stage_scaling() {
  local results=$logs/scaling.jsonl
  if [ -e "$folder/scaling.jsonl" ]; then cp "$folder/scaling.jsonl" "$results"; fi
  # shellcheck disable=SC2086  # several words
  one scaling scaling "$python" "$root/tests/bench/gpu_scaling.py" --results "$results" --ranks "$(counts | paste -sd, -)" \
    --seconds "$((stage_end - SECONDS - 10))" ${HEARTH_SCALING:-}
  grep -sv '^{' "$logs/scaling_scaling.log"
}

devices=$(nvidia-smi -L 2>/dev/null | wc -l)
[ "$devices" -ge 2 ] || { echo "$devices GPUs here: this needs two or more; tests/gpu.sh is for one" >&2; exit 2; }
unpack
logs=${OUT:-$folder/logs}
mkdir -p "$logs"
nvidia-smi --query-gpu=index,name,driver_version,clocks.max.sm,clocks.sm,power.limit --format=csv,noheader
nvidia-smi topo -m 2>/dev/null | head -n $((devices + 1))
[ $# -gt 0 ] || set -- correctness bandwidth fault scaling
for stage in "$@"; do
  stage_end=$((SECONDS + ${HEARTH_STAGE_SECONDS:-500}))
  case $stage in
    correctness | bandwidth | fault | scaling) "stage_$stage" ;;
    *) echo "no stage '$stage'" >&2; exit 2 ;;
  esac
done
finish
