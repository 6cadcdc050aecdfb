#!/usr/bin/env bash
#SBATCH --job-name=sbs_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# Trains on one node of a SLURM cluster: one process with all of the node's accelerators.
#
# Environment: SBS_PYTHON, the Python of an environment with sbs_jax (default: python on the PATH).
# Restarts: three minutes before its time is up, or when the node is wanted, the run saves and the job goes back
#   into the queue; a run that fails is started again, RESTARTS times (default 3), from its last checkpoint.
# Command: sbatch launch/slurm_node.sh --gin_file=FILE --gin.MODEL_DIR=PATH …
#   (a MODEL_DIR that all nodes see; #SBATCH lines may be overridden as in sbatch --gpus-per-node=4 launch/…)
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

for ((attempt = 0; attempt <= ${RESTARTS:-3}; attempt++)); do
  srun --kill-on-bad-exit=1 "${SBS_PYTHON:-python}" -m sbs_jax.train "$@" &
  step=$!
  wait "$step" && exit 0
  echo "attempt $attempt failed" >&2
done
exit 1
