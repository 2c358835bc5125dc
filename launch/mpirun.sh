#!/usr/bin/env bash
# launch/mpirun.sh RANKS COMMAND [ARG...]: starts COMMAND on RANKS ranks of this machine, as Hearth wants it.
#
# * Cores: mpirun's own default gives a rank one core, which starves data threads. Here each rank gets
#   floor(cores / RANKS) of them, bound where the machine has that many, unbound otherwise. HEARTH_CORES_PER_RANK
#   overrides the number (0 = unbound). The choice is printed; the rank's device is its local rank, logged by hearth.
# * Signals: mpirun kills its ranks two seconds after INT or TERM. So it runs in a session of its own, and INT, TERM
#   and USR1 sent here (Ctrl-C too) become USR1, which mpirun forwards: the run saves and ends with code 75.
#   A second INT or TERM does not wait: it is passed on as TERM.
# * The exit status is mpirun's: that of the first rank that failed.
# Can be sourced for run_ranks, which does the same, returns the status and leaves in run_ranks_notices how many
# INT or TERM came.
set -euo pipefail

# Cores that this process may use, hardware threads of one core counted once.
available_cores() {
  local allowed cores=0
  allowed=$(taskset -cp $$ 2>/dev/null | sed 's/.*: //') || allowed=
  if [ -n "$allowed" ] && command -v lscpu >/dev/null; then
    cores=$(lscpu -p=CPU,CORE,SOCKET 2>/dev/null | awk -F, -v allowed="$allowed" '
      BEGIN {
        n = split(allowed, ranges, ",")
        for (i = 1; i <= n; i++) {
          m = split(ranges[i], ends, "-"); last = m > 1 ? ends[2] : ends[1]
          for (cpu = ends[1] + 0; cpu <= last + 0; cpu++) usable[cpu] = 1
        }
      }
      !/^#/ && ($1 + 0 in usable) && !seen[$2 "," $3]++ { count++ }
      END { print count + 0 }')
  fi
  [ "$cores" -gt 0 ] || cores=$(nproc)
  echo "$cores"
}

# Sets mpirun_options for $1 ranks and exports OMP_NUM_THREADS.
choose_binding() {
  local ranks=$1 cores per_rank
  cores=$(available_cores)
  per_rank=${HEARTH_CORES_PER_RANK:-$((cores / ranks))}
  if [ "$per_rank" -gt 0 ] && [ $((per_rank * ranks)) -le "$cores" ]; then
    mpirun_options=(--map-by "slot:PE=$per_rank" --bind-to core)
  else
    mpirun_options=(--bind-to none --oversubscribe)
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((per_rank > 0 ? per_rank : 1))}
  echo "event=launch ranks=$ranks cores=$cores cores_per_rank=$per_rank omp_threads=$OMP_NUM_THREADS binding='${mpirun_options[*]}'" >&2
}

run_ranks() {
  local ranks=$1 status=0 own_session=(setsid)
  shift
  local mpirun_options=()
  choose_binding "$ranks"
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  # Containers forbid reading another process's memory; the copy through shared memory works everywhere.
  export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
  # mpirun needs no device plugin of hwloc; the OpenCL one loads LLVM, which takes USR1 away from mpirun where pocl is installed.
  export HWLOC_COMPONENTS=${HWLOC_COMPONENTS:--opencl,-gl,-cuda,-nvml,-rsmi,-levelzero}
  # mpirun dies with this script, however that ends, and takes its ranks along.
  if command -v setpriv >/dev/null; then own_session+=(setpriv --pdeathsig KILL); fi

  "${own_session[@]}" mpirun "${mpirun_options[@]}" -np "$ranks" "$@" </dev/null &
  local mpirun_pid=$!
  run_ranks_notices=0
  trap 'kill -USR1 "$mpirun_pid" 2>/dev/null || true' USR1
  trap 'run_ranks_notices=$((run_ranks_notices + 1))
        if [ "$run_ranks_notices" = 1 ]; then
          echo "event=notice action=\"saving at the next step boundary, then ending; once more to stop at once\"" >&2
          kill -USR1 "$mpirun_pid" 2>/dev/null || true
        else
          kill -TERM "$mpirun_pid" 2>/dev/null || true
        fi' INT TERM
  # A trapped signal ends `wait` early, so it is asked again until mpirun has really ended.
  while true; do
    status=0
    wait "$mpirun_pid" || status=$?
    kill -0 "$mpirun_pid" 2>/dev/null || break
  done
  trap - USR1 INT TERM
  return "$status"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  if [ $# -lt 2 ] || ! [ "$1" -gt 0 ] 2>/dev/null; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
  fi
  run_ranks "$@"
fi
