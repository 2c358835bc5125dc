#!/usr/bin/env bash
# slurm_requeue.sh: runs slurm/train.sbatch and slurm/train_multinode.sbatch on a real Slurm of three virtual nodes on
# this machine: notice, save, exit code 75, requeue, resume; then an operator's requeue, whose TERM reaches mpirun itself
# too and leaves two seconds: what was saved by then is what the next attempt resumes. Needs root and the Debian
# packages slurmctld slurmd slurm-client munge libpmix2; skipped (77) without. Takes two to three minutes, most of it
# Slurm's own wait before it starts a requeued job again. Everything lives in one temporary folder; all daemons are ended.
# shellcheck disable=SC2317  # functions are called through check, wait_for and the trap
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
readonly repository
for tool in slurmctld slurmd munged sbatch; do
  command -v "$tool" >/dev/null || { echo "skipped: $tool is not installed"; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: needs root"; exit 77; }

work=$(mktemp -d "${TMPDIR:-/tmp}/hearth-slurm.XXXXXX")
daemons=()
clean_up() {
  scancel --full "${jobs[@]}" 2>/dev/null || true
  local pid
  for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
  sleep 1
  for pid in "${daemons[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
jobs=()
trap clean_up EXIT
failed=0
check() {  # check NAME COMMAND...
  local name=$1
  shift
  if "$@"; then echo "ok   $name"; else echo "FAIL $name"; failed=1; fi
}

start_slurm() {
  local host node
  host=$(hostname -s)
  mkdir -p "$work"/{state,log,spool.n1,spool.n2,spool.n3,tmp.n1,tmp.n2,tmp.n3}
  dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 2>/dev/null
  chmod 400 "$work/munge.key"
  cat >"$work/slurm.conf" <<END
ClusterName=hearth
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
SlurmctldPort=16817
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.%n.pid
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool.%n
SlurmctldLogFile=$work/log/slurmctld.log
SlurmdLogFile=$work/log/slurmd.%n.log
TmpFS=$work/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
SlurmdTimeout=30
KillWait=20
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName=n[1-3] NodeAddr=127.0.0.1 NodeHostname=$host Port=[17001-17003] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
END
  export SLURM_CONF=$work/slurm.conf
  munged --force --foreground --socket="$work/munge.socket" --key-file="$work/munge.key" --pid-file="$work/munged.pid" \
    --seed-file="$work/munge.seed" --log-file="$work/log/munged.log" >"$work/log/munged.out" 2>&1 &
  daemons+=($!)
  sleep 1
  slurmctld -D -i >"$work/log/slurmctld.out" 2>&1 &
  daemons+=($!)
  for node in n1 n2 n3; do
    slurmd -D -N "$node" >"$work/log/slurmd.$node.out" 2>&1 &
    daemons+=($!)
  done
  wait_for 60 "three idle nodes" all_idle
}

wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local seconds=$1 what=$2 end
  shift 2
  end=$((SECONDS + seconds))
  until "$@" 2>/dev/null; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "FAIL waited $seconds s for $what"
      tail -n 20 "$work"/log/*.log "$work"/*/hearth-*.log 2>/dev/null || true
      exit 1
    fi
    sleep 0.3
  done
}

all_idle() { [ "$(sinfo -h -t idle -o %D)" = 3 ]; }
job_state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'; }
has_steps() { [ "$(grep -c '"lm loss"' "$1" 2>/dev/null)" -ge "$2" ]; }
in_log() { grep -q -- "$2" "$1"; }
is_state() { [ "$(job_state "$1")" = "$2" ]; }

# run_case NAME NOTICE SBATCH_ARGUMENT...: NOTICE = usr1 (what --signal=B:USR1 sends) or requeue (an operator's).
run_case() {
  local name=$1 notice=$2 folder=$work/$1 job log
  shift 2
  mkdir -p "$folder"
  cp -r "$work/fixture/." "$folder"
  ln -s "$repository/launch" "$folder/launch"
  job=$(cd "$folder" && sbatch --parsable --export=ALL,TMPDIR="$folder" "$@" config.yaml --set "checkpoint.save=runs/$name")
  jobs+=("$job")
  log=$folder/hearth-$job.log
  wait_for 60 "steps of $name" has_steps "$folder/runs/$name/metrics.jsonl" 20
  if [ "$notice" = usr1 ]; then scancel --signal=USR1 --batch "$job"; else scontrol requeue "$job"; fi
  if [ "$notice" = usr1 ]; then wait_for 60 "$name to end with 75" in_log "$log" 'status=75'; fi
  wait_for 240 "$name to start again" in_log "$log" 'restarts=1'
  wait_for 180 "$name to complete" is_state "$job" COMPLETED
  check "$name: saved and resumed, every step once" same_as_golden "$folder/runs/$name/metrics.jsonl"
  check "$name: the second attempt resumed" resumed_after_first_step "$log"
  if [ "$failed" = 1 ]; then grep -v ' I step=' "$log"; fi
}

losses_of() { sed -n 's/.*"step": \([0-9]*\), "lm loss": \([-0-9.e]*\),.*/\1 \2/p' "$1"; }
same_as_golden() { diff <(losses_of "$work/fixture/runs/golden/metrics.jsonl") <(losses_of "$1") >/dev/null; }
resumed_after_first_step() {
  local first
  first=$(sed -n '/restarts=1/,$s/.*event=train_begin step=\([0-9]*\).*/\1/p' "$1" | head -n 1)
  [ -n "$first" ] && [ "$first" -gt 0 ]
}

export HEARTH_BINARY
HEARTH_BINARY=$(realpath "${HEARTH_BINARY:?set by tests/run.sh}")
"${HEARTH_PYTHON:?set by tests/run.sh}" "$repository/tests/integration/fixture.py" "$work/fixture" \
  training.train_iters=400 optimizer.lr_decay_iters=400 checkpoint.save_interval=10
(cd "$work/fixture" && "$repository/tests/mpirun.sh" 2 "$HEARTH_BINARY" train config.yaml --set checkpoint.save=runs/golden) \
  >"$work/golden.log" 2>&1 || { cat "$work/golden.log"; exit 1; }
start_slurm
run_case single usr1 "$repository/slurm/train.sbatch"
run_case operator requeue "$repository/slurm/train.sbatch"
if srun --mpi=list 2>&1 | grep -q pmix; then
  run_case multinode usr1 --nodes=2 --ntasks-per-node=1 "$repository/slurm/train_multinode.sbatch"
else
  echo "FAIL this Slurm has no PMIx: install libpmix2"
  failed=1
fi
exit "$failed"
