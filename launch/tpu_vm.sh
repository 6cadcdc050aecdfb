#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a pod slice: makes it if need be, installs sbs_jax, starts all of its hosts.
#
# Environment: TPU (its name), ZONE, TYPE (v5litepod-8 is one host; v5litepod-64 is a slice of several), VERSION
#   (its software, v2-alpha-tpuv5-lite), CREATE_FLAGS (of its making, such as --spot), SHARE (ADDRESS:/NAME of a
#   Filestore, mounted at /mnt/share: several hosts need one), SOURCE (what pip installs, default: this checkout,
#   copied there); gcloud, logged in, with a project set.
# Restarts: a host that dies ends the others within a minute, and all are started again, RESTARTS times (default 20),
#   from the last checkpoint. A TPU that was taken away is asked for again.
# Command: TPU=name ZONE=us-west4-a TYPE=v5litepod-64 bash launch/tpu_vm.sh --gin_file=FILE \
#   --gin.MODEL_DIR=/mnt/share/RUN …   (a MODEL_DIR that all hosts see)
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}" "${TYPE:?its type, such as v5litepod-8}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

ensure_tpu() {
  if ! gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" >/dev/null 2>&1; then
    # CREATE_FLAGS are several words.
    # shellcheck disable=SC2086
    gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$TYPE" \
      --version="${VERSION:-v2-alpha-tpuv5-lite}" ${CREATE_FLAGS:-}
  fi
  if [ -z "${SOURCE:-}" ]; then
    gcloud compute tpus tpu-vm scp --recurse "$here" "$TPU:sbs_jax_source" --zone="$ZONE" --worker=all
  fi
  if [ -n "${SHARE:-}" ]; then
    on_all_hosts "mountpoint -q /mnt/share || { sudo apt-get install -y -q nfs-common &&
      sudo mkdir -p /mnt/share && sudo mount '$SHARE' /mnt/share; }"
  fi
  on_all_hosts "pip install --quiet '${SOURCE:-./sbs_jax_source}[tpu]'"
}

# What each host runs; on a slice the TPU's own environment says who is who.
command="python3 -m sbs_jax.train $(printf '%q ' "$@")--coordinator_address=auto"
for ((attempt = 0; attempt <= ${RESTARTS:-20}; attempt++)); do
  ensure_tpu
  if on_all_hosts "$command"; then
    exit 0
  fi
  echo "attempt $attempt failed" >&2
  sleep 30
done
exit 1
