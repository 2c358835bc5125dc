#!/usr/bin/env bash
# launch/build.sh [--cpu-only] [--sanitize] [--no-tests] [--jobs N] [--build-dir DIR] [TARGET...]: set-up, then build/hearth.
#
#   --cpu-only    no CUDA part, even where there is a toolkit
#   --sanitize    AddressSanitizer and UndefinedBehaviorSanitizer, into build-sanitize/ (CPU only)
#   --no-tests    the program alone
# Targets are those of CMake; default: everything. Release build with -O3, warnings are errors, ccache where present.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

build=$HEARTH_ROOT/build tests=ON sanitize=OFF jobs=$(nproc) targets=()
while [ $# -gt 0 ]; do
  case $1 in
    --cpu-only) export HEARTH_CUDA=OFF ;;
    --sanitize) sanitize=ON build=$HEARTH_ROOT/build-sanitize HEARTH_CUDA=OFF && export HEARTH_CUDA ;;
    --no-tests) tests=OFF ;;
    --jobs) jobs=${2:?--jobs needs a number} && shift ;;
    --build-dir) build=${2:?--build-dir needs a folder} && shift ;;
    -h | --help) sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) die "unknown option '$1'" "see launch/build.sh --help" ;;
    *) targets+=("$1") ;;
  esac
  shift
done

"$HEARTH_ROOT/launch/setup.sh"
started=$SECONDS
cuda=$(cuda_choice)
arguments=(-G Ninja -S "$HEARTH_ROOT" -B "$build" -DHEARTH_TORCH_DIR="$(find_torch)" -DHEARTH_CUDA="$cuda"
  -DHEARTH_TESTS="$tests" -DHEARTH_SANITIZE="$sanitize")
if [ "$cuda" = ON ]; then arguments+=(-DCMAKE_CUDA_COMPILER="$(find_nvcc)"); fi
# The cache is asked anew only when an answer changed: cmake itself is a second of an incremental build.
wanted=$(printf '%s\n' "${arguments[@]}")
if [ ! -e "$build/build.ninja" ] || [ "$(cat "$build/.hearth-arguments" 2>/dev/null)" != "$wanted" ]; then
  say "build: configuring $build (CUDA $cuda)"
  if ! cmake "${arguments[@]}" >"${TMPDIR:-/tmp}/hearth-cmake.$$" 2>&1; then
    cat "${TMPDIR:-/tmp}/hearth-cmake.$$" >&2
    rm -f "${TMPDIR:-/tmp}/hearth-cmake.$$"
    die "cmake could not configure $build"
  fi
  rm -f "${TMPDIR:-/tmp}/hearth-cmake.$$"
  printf '%s\n' "$wanted" >"$build/.hearth-arguments"
fi
# ptxas writes its register table to stderr on every compile; ninja shows it. It is kept out of the way, in a log.
if ! ninja -C "$build" -j "$jobs" "${targets[@]}" >"$build/build.log" 2>&1; then
  grep -v -E "^ptxas info|^\[[0-9]+/[0-9]+\] (Building|Linking)" "$build/build.log" | tail -60 >&2
  die "the build failed" "the whole output is in $build/build.log"
fi
say "build: done in $((SECONDS - started)) s; the program is $build/hearth"
