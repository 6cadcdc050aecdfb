#!/usr/bin/env bash
#SBATCH --job-name=sbs_jax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# Trains on many nodes of a SLURM cluster as one run: a process on each node, with all of its accelerators.
#
# Environment: SBS_PYTHON, the Python of an environment with sbs_jax (default: python on the PATH), on all nodes.
# Restarts: a process that dies ends all others within a minute, and all are started again, RESTARTS times (default
#   3), from the last checkpoint. Three minutes before time is up, or when the nodes are wanted, the run saves and the
#   job goes back into the queue.
# Command: sbatch --nodes=4 launch/slurm_nodes.sh --gin_file=FILE --gin.MODEL_DIR=PATH --gin.MODEL_PARALLEL=8 …
#   (a MODEL_DIR that all nodes see; docs/launch.md says which mesh for which size)
set -uo pipefail

# Called by the trap below (which shellcheck does not see; its versions have two numbers for it).
# shellcheck disable=SC2317,SC2329
go_on_later() {
  trap '' USR1 TERM
  kill -TERM "$step"  # srun passes it on; the run saves and ends.
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap go_on_later USR1 TERM

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Expanded on each node: a process's number is known there alone.
# shellcheck disable=SC2016
process='exec "$@" --coordinator_address="$SBS_COORDINATOR" '
# shellcheck disable=SC2016
process+='--process_count="$SLURM_NTASKS" --process_index="$SLURM_PROCID"'
for ((attempt = 0; attempt <= ${RESTARTS:-3}; attempt++)); do
  # Another port each time: the old one may not be free yet.
  export SBS_COORDINATOR=$host:$((20000 + (SLURM_JOB_ID * 8 + attempt) % 20000))
  srun --kill-on-bad-exit=1 bash -c "$process" \
    sbs_jax "${SBS_PYTHON:-python}" -m sbs_jax.train "$@" &
  step=$!
  wait "$step" && exit 0
  echo "attempt $attempt failed" >&2
done
exit 1
