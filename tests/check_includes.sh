#!/usr/bin/env bash
# tests/check_includes.sh [ROOT]: the arrows between folders. Fails and names the line when
#   * a header that belongs to one folder is included in another (hdf5.h, mpi.h, nccl.h, cublasLt.h, yaml-cpp),
#   * a folder includes one that it must not know (design: launch -> trainer -> {parallel, data, kernels},
#     parallel -> kernels, all -> base),
#   * code opens a socket or calls what library code must not call.
set -eu
root=$(cd "${1:-$(dirname "$0")/..}" && pwd)
cd "$root"
status=0

forbid() {  # pattern message folders...
  local pattern=$1 message=$2 hits
  shift 2
  hits=$(grep -rnE --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' -- "$pattern" "$@" 2>/dev/null || true)
  if [ -n "$hits" ]; then
    printf '%s\n' "$message:" "$hits" >&2
    status=1
  fi
}

all=(base kernels parallel data trainer launch)
others() {
  local folder
  for folder in "${all[@]}"; do [ "$folder" = "$1" ] || printf '%s\n' "$folder"; done
}

owned() {  # header pattern, folder that may include it
  # shellcheck disable=SC2046
  forbid "^ *# *include *[<\"]$1" "only $2/ may include $1" $(others "$2")
}
owned 'hdf5\.h' data
owned 'mpi\.h' parallel
owned 'nccl\.h' parallel
owned 'cublasLt\.h' kernels
owned 'yaml-cpp/' launch

may_not_know() {  # folder, folders it must not include
  local folder=$1 other
  shift
  for other in "$@"; do forbid "^ *# *include *\"$other/" "$folder/ must not know $other/" "$folder"; done
}
may_not_know base kernels parallel data trainer launch
may_not_know kernels parallel data trainer launch
may_not_know parallel data trainer launch
may_not_know data kernels parallel trainer launch
may_not_know trainer launch

forbid '^ *# *include *<(sys/socket|netinet/|netdb|curl/)' 'no network code here' "${all[@]}"
# parallel/ ends jobs: ControlPlane::abort is its business.
forbid '(^|[^a-zA-Z_:.>])(std::)?(getenv|abort|exit|printf)\(' \
  'library code must not call getenv, abort, exit or printf' base kernels data trainer
[ "$status" = 0 ] && echo "includes: right"
exit "$status"
