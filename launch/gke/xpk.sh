#!/usr/bin/env bash
# Trains on Google Kubernetes Engine through xpk, which writes the JobSet itself.
#
# Environment: CLUSTER (made with `xpk cluster create`), ZONE, TYPE (v5litepod-16), IMAGE (a container image with
#   sbs_jax[tpu]), RUN (the workload's name); xpk and kubectl, logged in.
# Restarts: MAX_RESTARTS (default 20) of all pods together, each from the last checkpoint; a process that dies ends
#   the others within a minute.
# Command: CLUSTER=… ZONE=… TYPE=v5litepod-16 IMAGE=… RUN=… bash launch/gke/xpk.sh --gin_file=FILE \
#   --gin.MODEL_DIR=/shared/RUN …   (a folder that all pods see: a volume attached with `xpk storage attach`)
set -euo pipefail
: "${CLUSTER:?}" "${ZONE:?}" "${TYPE:?}" "${IMAGE:?}" "${RUN:?}"
exec xpk workload create --cluster="$CLUSTER" --zone="$ZONE" --tpu-type="$TYPE" \
  --workload="$RUN" --docker-image="$IMAGE" --max-restarts="${MAX_RESTARTS:-20}" \
  --command="python -m sbs_jax.train $(printf '%q ' "$@")--coordinator_address=auto"
