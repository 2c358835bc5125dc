# Names that the scripts of launch/ and tests/ share; sourced, never run. Changes nothing on disk.
#   HEARTH_CACHE   everything that is fetched and is no system package; default ~/.cache/hearth
#   HEARTH_CUDA    ON or OFF; default: ON where nvcc 13 or newer is found
#   CUDA_HOME      where the CUDA toolkit lies; default /usr/local/cuda
# shellcheck shell=bash
HEARTH_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export HEARTH_ROOT
export HEARTH_CACHE=${HEARTH_CACHE:-$HOME/.cache/hearth}
readonly hearth_torch_version=2.11.0
export HEARTH_VENV=$HEARTH_CACHE/venv-$hearth_torch_version
export HEARTH_PYTHON=$HEARTH_VENV/bin/python

say() { printf '%s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

# The CUDA compiler, or nothing.
find_nvcc() {
  local candidate
  for candidate in "${CUDACXX:-}" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" "$(command -v nvcc || true)"; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

# ON or OFF: is the CUDA part built here?
cuda_choice() {
  local nvcc major
  if [ -n "${HEARTH_CUDA:-}" ]; then
    printf '%s\n' "$HEARTH_CUDA"
    return
  fi
  nvcc=$(find_nvcc)
  major=0
  [ -z "$nvcc" ] || major=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
  if [ "${major:-0}" -ge 13 ]; then echo ON; else echo OFF; fi
}

# Folder `torch` of the wheel, or nothing.
find_torch() {
  local folder
  for folder in "$HEARTH_VENV"/lib/python3.*/site-packages/torch; do
    [ ! -e "$folder/lib/libtorch_cpu.so" ] || printf '%s\n' "$folder"
  done
}
