#!/usr/bin/env bash
# launch/bundle.sh [--with-torch] [--with-nvidia] [--output FILE]: build/hearth as one archive for a machine that has no
# registry and none of our packages. Unpack it anywhere there and run ./hearth, ./mpirun -np N ./hearth, ...
#
#   always          the program, every shared library it needs but glibc's, Open MPI's mpirun with its plugins
#   --with-torch    LibTorch; without it the archive is small and ./hearth looks for a torch wheel of the same version:
#                   $HEARTH_TORCH_DIR, else that of python3
#   --with-nvidia   the CUDA, cuDNN and NCCL libraries that come with the wheel (not the driver: that is the machine's own)
# Environment: HEARTH_BINARY, another program than build/hearth. Default output: dist/hearth-VERSION.tar.gz
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

with_torch=no with_nvidia=no output=
while [ $# -gt 0 ]; do
  case $1 in
    --with-torch) with_torch=yes ;;
    --with-nvidia) with_nvidia=yes ;;
    --output) output=$(realpath -m "${2:?--output needs a file}") && shift ;;
    -h | --help) sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) die "unknown option '$1'" "see launch/bundle.sh --help" ;;
  esac
  shift
done

binary=${HEARTH_BINARY:-$HEARTH_ROOT/build/hearth}
[ -x "$binary" ] || die "there is no program at $binary" "run launch/build.sh first"
site=$(realpath "${HEARTH_TORCH_DIR:-$(find_torch)}/..")
name=hearth-$("$binary" --version | awk '{ print $2; exit }')
output=${output:-$HEARTH_ROOT/dist/$name.tar.gz}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bundle=$scratch/$name
mkdir -p "$bundle"/{bin,lib,compat,mpi/bin}

# Of Open MPI's plugins, each says where it lives; Debian and Ubuntu keep the layout below one prefix.
opal() { ompi_info --all --parsable 2>/dev/null | sed -n "s/^path:$1://p" | head -1; }
copy_mpi() {
  local prefix libdir plugins data plugin
  prefix=$(opal prefix) libdir=$(opal libdir) plugins=$(opal pkglibdir) data=$(opal pkgdatadir)
  [ -d "$plugins" ] || die "ompi_info names no folder of plugins" "Open MPI 4.1 is needed (openmpi-bin)"
  cp -L "$(command -v orterun)" "$(command -v orted)" "$bundle/mpi/bin/"
  mkdir -p "$bundle/mpi/${libdir#"$prefix"/}" "$bundle/mpi/share" "$bundle/mpi/etc"
  cp -rL "$plugins" "$bundle/mpi/${libdir#"$prefix"/}/"
  cp -rL "$data" "$bundle/mpi/share/openmpi"
  cp -L "$(opal sysconfdir)/openmpi-mca-params.conf" "$bundle/mpi/etc/"  # Debian rules out transports that break
  plugin=$(find "${libdir%/openmpi/lib}" -name 'pmix_mca_*.so' -print -quit)
  [ -n "$plugin" ] || die "PMIx has no plugins below ${libdir%/openmpi/lib}" "mpirun of the bundle could not start ranks"
  cp -rL "$(dirname "$plugin")" "$bundle/mpi/pmix"
}

# Every library that the given files load, but glibc, the dynamic loader, the driver, and what lies in the wheels.
needed_libraries() {
  ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -v -E '/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|util|resolv|anl|nss_[a-z]+)|libcuda|libnvidia-[^/]*)\.so' |
    grep -v -F "$site/" || true
}

copy_libraries() {
  local library
  while read -r library; do
    case $(basename "$library") in
      libstdc++.so.* | libgcc_s.so.*) cp -L "$library" "$bundle/compat/" ;;
      *) cp -L "$library" "$bundle/lib/" ;;
    esac
  done < <({ needed_libraries "$binary"; needed_libraries "$bundle"/mpi/bin/*
    find "$bundle/mpi" -name '*.so' -print0 | xargs -0 -n 50 ldd 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' |
      grep -v -E '/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|util|resolv|anl)|libcuda|libnvidia-[^/]*)\.so'; } | sort -u)
}

# The wheels' folders keep their places to each other: LibTorch finds its neighbours by relative paths.
copy_wheels() {
  local library folder
  if [ "$with_torch" = yes ]; then
    mkdir -p "$bundle/site/torch/lib"
    ldd "$binary" | awk '$3 ~ /^\// { print $3 }' | { grep -F "$site/torch/lib/" || true; } | while read -r library; do
      cp -L "$library" "$bundle/site/torch/lib/"
    done
  fi
  if [ "$with_nvidia" = yes ]; then
    for folder in "$site"/nvidia/*/lib; do
      library=$(basename "$(dirname "$folder")")
      # A CPU-only program needs two small ones; the others are gigabytes.
      if ! ldd "$binary" | grep -q libtorch_cuda && [ "$library" != cu13 ]; then continue; fi
      mkdir -p "$bundle/site/nvidia/$library/lib"
      if ldd "$binary" | grep -q libtorch_cuda; then
        find "$folder" -maxdepth 1 -name '*.so*' -exec cp -L {} "$bundle/site/nvidia/$library/lib/" \;
      else
        cp -L "$folder"/libcudart.so.* "$folder"/libcupti.so.* "$bundle/site/nvidia/$library/lib/"
      fi
    done
  fi
}

write_wrappers() {
  cat >"$bundle/environment.sh" <<'WRAPPER'
# Sourced by ./hearth and ./mpirun: where this bundle's libraries are.
export PATH="${PATH:-/usr/bin:/bin}"
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
if [ -d "$here/site/torch" ]; then
  site=$here/site
else
  torch=${HEARTH_TORCH_DIR:-$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null || true)}
  if [ ! -e "$torch/lib/libtorch_cpu.so" ]; then
    echo "error: no LibTorch found: this bundle was made without it  [kind=Usage exit=2]" >&2
    echo "  set HEARTH_TORCH_DIR to the folder torch of a torch==2.11.0 wheel, or make the bundle with --with-torch" >&2
    exit 2
  fi
  site=$torch/..
fi
path=$here/lib:$site/torch/lib
for folder in "$here"/site/nvidia/*/lib "$site"/nvidia/*/lib; do
  if [ -d "$folder" ]; then path=$path:$folder; fi
done
# The machine's own C++ library is preferred, because its driver and fabric libraries were made for it.
if ! { ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep -q 'libstdc++\.so\.6'; then path=$path:$here/compat; fi
export LD_LIBRARY_PATH="$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export OPAL_PREFIX="$here/mpi" OPAL_SYSCONFDIR="$here/mpi/etc" OPAL_PKGDATADIR="$here/mpi/share/openmpi"
export PMIX_PKGLIBDIR="$here/mpi/pmix" PMIX_MCA_mca_base_component_path="$here/mpi/pmix"
# Device plugins of the machine's hwloc load OpenCL, whose LLVM takes USR1 away from mpirun.
export HWLOC_COMPONENTS="${HWLOC_COMPONENTS:--opencl,-gl,-cuda,-nvml,-rsmi,-levelzero}"
WRAPPER
  cat >"$bundle/hearth" <<'WRAPPER'
#!/bin/sh
set -eu
. "$(dirname "$(readlink -f "$0")")/environment.sh"
exec "$here/bin/hearth" "$@"
WRAPPER
  cat >"$bundle/mpirun" <<'WRAPPER'
#!/bin/sh
set -eu
. "$(dirname "$(readlink -f "$0")")/environment.sh"
exec "$here/mpi/bin/orterun" "$@"
WRAPPER
  chmod +x "$bundle/hearth" "$bundle/mpirun"
}

cp "$binary" "$bundle/bin/hearth"
copy_mpi
copy_libraries
copy_wheels
write_wrappers
mkdir -p "$(dirname "$output")"
tar -C "$scratch" -c "$name" | gzip -1 >"$output.tmp"
mv "$output.tmp" "$output"
say "bundle: $output ($(du -h "$output" | cut -f1), LibTorch $with_torch, NVIDIA libraries $with_nvidia)"
