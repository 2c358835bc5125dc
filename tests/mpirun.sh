#!/usr/bin/env bash
# Runs a test program under mpirun on this machine: tests/mpirun.sh RANKS PROGRAM [ARG...]
# Oversubscribing and yielding make 8 ranks on 2 cores work; --timeout is a safety net, not an assertion.
set -eu
ranks=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
# hwloc's device plugins are not needed, and the OpenCL one can take USR1 away from mpirun (launch/mpirun.sh).
export HWLOC_COMPONENTS=${HWLOC_COMPONENTS:--opencl,-gl,-cuda,-nvml,-rsmi,-levelzero}
export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_btl_base_warn_component_unused=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec mpirun --timeout "${HEARTH_TEST_TIMEOUT:-300}" -np "$ranks" "$@"
