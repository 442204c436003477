#!/usr/bin/env bash
# Train on a TPU VM or pod that is there: copy this checkout to every worker, install it, run the same command on all.
#
#   launch/tpu_run.sh --name POD --zone ZONE [--project P] [--dry-run] -- --config configs/e5_mistral_7b.py --workdir DIR
#
# What stands behind -- goes to `python -m e5jax.train`. DIR is what all workers reach: gs://BUCKET/RUN, or a shared disk.
# Run it again after an interruption and the run goes on. Exits with training's status.
set -euo pipefail

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit "$1"
}

name='' zone='' project=() run=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name=${2:?--name wants a value}; shift 2 ;;
    --zone) zone=${2:?--zone wants a value}; shift 2 ;;
    --project) project=(--project "${2:?--project wants a value}"); shift 2 ;;
    --dry-run) run=(echo); shift ;;
    --help | -h) usage 0 ;;
    --) shift; break ;;
    *) echo "unknown argument $1" >&2; usage 2 >&2 ;;
  esac
done
if [ -z "$name" ] || [ -z "$zone" ] || [ $# -eq 0 ]; then usage 2 >&2; fi

where=(--zone "$zone" ${project[@]+"${project[@]}"})
on_all() {
  ${run[@]+"${run[@]}"} gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}

archive=$(mktemp -d)/e5jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
${run[@]+"${run[@]}"} git -C "$(dirname "$0")/.." archive --format=tar.gz --output "$archive" HEAD
${run[@]+"${run[@]}"} gcloud compute tpus tpu-vm scp "$archive" "$name:e5jax.tar.gz" "${where[@]}" --worker=all
on_all "mkdir -p e5jax && tar -xzf e5jax.tar.gz -C e5jax && cd e5jax && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu,gcs]'"
# On Cloud TPU VMs no variable says that there are others: JAX asks the machine's metadata.
on_all "cd e5jax && E5JAX_DISTRIBUTED=1 .venv/bin/python -m e5jax.train $(printf '%q ' "$@")"
