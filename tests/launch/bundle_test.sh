#!/usr/bin/env bash
# The bundle runs from a folder of its own with an empty environment, alone and under its own mpirun, and takes every
# library but glibc's from itself or from the torch wheel.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${HEARTH_BINARY:?HEARTH_BINARY names the program}" "${HEARTH_TORCH_DIR:?HEARTH_TORCH_DIR names the folder torch}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
wrong() { echo "FAILED: $*" >&2; exit 1; }

"$here/../../launch/bundle.sh" --output "$folder/hearth.tar.gz"
tar -C "$folder" -xzf "$folder/hearth.tar.gz"
bundle=$(echo "$folder"/hearth-*/)
clean() { env -i HEARTH_TORCH_DIR="$HEARTH_TORCH_DIR" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$@"; }

clean "$bundle/hearth" --help | grep -q '^Subcommands:' || wrong "--help"
clean "$bundle/hearth" doctor --folder "$folder" | grep -q 'a run could start here' || wrong "doctor"
clean OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none \
  "$bundle/mpirun" -np 2 "$bundle/hearth" doctor --folder "$folder" >"$folder/two" 2>&1 || { cat "$folder/two" >&2; wrong "two ranks"; }
grep -q 'all_reduce over 2 ranks (mpi): right' "$folder/two" || { cat "$folder/two" >&2; wrong "two ranks: no collective"; }
got=0
env -i HEARTH_TORCH_DIR="$folder/none" "$bundle/hearth" --help >"$folder/none.out" 2>&1 || got=$?
[ "$got" = 2 ] || wrong "without LibTorch: ended with $got"
grep -q 'no LibTorch found' "$folder/none.out" || wrong "without LibTorch: no message"

site=$(dirname "$HEARTH_TORCH_DIR")
LD_LIBRARY_PATH=$bundle/lib:$HEARTH_TORCH_DIR/lib:$(printf '%s:' "$site"/nvidia/*/lib) ldd "$bundle/bin/hearth" >"$folder/ldd"
! grep 'not found' "$folder/ldd" || wrong "missing libraries"
strangers=$(awk '$2 == "=>" && $3 ~ /^\// { print $3 }' "$folder/ldd" | grep -v -F -e "$folder/" -e "$site/" |
  grep -v -E '/(lib(c|m|dl|rt|pthread|util|resolv)|libstdc\+\+|libgcc_s)\.so' || true)
[ -z "$strangers" ] || wrong "taken from this machine: $strangers"
echo "bundle: right"
