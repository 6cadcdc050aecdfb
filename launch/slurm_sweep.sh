#!/usr/bin/env bash
#SBATCH --job-name=sbs_jax_sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=7-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Runs a sweep as arrays of SLURM jobs, one run a job, watched by this small job instead of your terminal.
#
# Environment: SBS_PYTHON, the Python of an environment with sbs_jax[slurm] (default: python on the PATH).
# Restarts: jobs whose time is up, or whose node is wanted, save and are requeued; a run that fails is submitted again
#   RETRIES times; this job, killed and started again, takes up the jobs that are in the queue.
# Command: sbatch launch/slurm_sweep.sh --gin_file=sweeps/lambda.gin --sweep_dir=PATH --parallel_runs=16 \
#   --gin.SLURM="{'partition': 'gpu', 'gpus': 1, 'hours': 8}" …
set -euo pipefail
exec "${SBS_PYTHON:-python}" -m sbs_jax.sweep --engine=slurm "$@"
