#!/usr/bin/env bash
# The include check accepts this tree and refuses each kind of wrong arrow.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
check=$here/../check_includes.sh
"$check" "$here/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"/{base,kernels,parallel,data,trainer,launch}
"$check" "$folder" >/dev/null
must_refuse() {  # file line
  printf '%s\n' "$2" >"$folder/$1"
  if "$check" "$folder" >/dev/null 2>&1; then
    echo "not refused: $2 in $1" >&2
    exit 1
  fi
  rm "$folder/$1"
}
must_refuse trainer/a.cpp '#include <hdf5.h>'
must_refuse launch/a.cpp '#include <mpi.h>'
must_refuse kernels/a.cu '#include <nccl.h>'
must_refuse trainer/a.h '#include <cublasLt.h>'
must_refuse trainer/a.h '#include <yaml-cpp/yaml.h>'
must_refuse base/a.h '#include "data/shard.h"'
must_refuse data/a.h '#include "parallel/comm.h"'
must_refuse parallel/a.h '#include "trainer/trainer.h"'
must_refuse trainer/a.cpp '#include "launch/signals.h"'
must_refuse data/a.cpp '#include <sys/socket.h>'
must_refuse data/a.cpp '  exit(3);'
must_refuse base/a.cpp 'auto x = std::getenv("HOME");'
"$check" "$folder" >/dev/null
echo "check_includes: right"
