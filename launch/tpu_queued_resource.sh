#!/usr/bin/env bash
# Get a TPU as a queued resource, train on it, and get another one whenever it is taken away, until training is done.
#
#   launch/tpu_queued_resource.sh --name N --zone Z --type v5litepod-256 --runtime v2-alpha-tpuv5-lite [--spot] \
#       [--project P] [--dry-run] -- --config configs/e5_mistral_7b.py --workdir DIR
#
# What stands behind -- goes to `python -m e5jax.train`, by tpu_run.sh. A TPU that is still there after training failed
# was not taken away: the command stops with training's status, and the TPU stays. When training is done, it is deleted.
set -euo pipefail

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit "$1"
}

name='' zone='' type='' runtime='' spot=() project=() dry=''
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name=${2:?--name wants a value}; shift 2 ;;
    --zone) zone=${2:?--zone wants a value}; shift 2 ;;
    --type) type=${2:?--type wants a value}; shift 2 ;;
    --runtime) runtime=${2:?--runtime wants a value}; shift 2 ;;
    --project) project=(--project "${2:?--project wants a value}"); shift 2 ;;
    --spot) spot=(--spot); shift ;;
    --dry-run) dry=1; shift ;;
    --help | -h) usage 0 ;;
    --) shift; break ;;
    *) echo "unknown argument $1" >&2; usage 2 >&2 ;;
  esac
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ -z "$runtime" ] || [ $# -eq 0 ]; then usage 2 >&2; fi

where=(--zone "$zone" ${project[@]+"${project[@]}"})
queued=(gcloud compute tpus queued-resources)
create=("${queued[@]}" create "$name" --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime"
  "${where[@]}" ${spot[@]+"${spot[@]}"})
train=("$(dirname "$0")/tpu_run.sh" --name "$name" "${where[@]}")
delete=("${queued[@]}" delete "$name" "${where[@]}" --force --quiet)
if [ -n "$dry" ]; then
  echo "${create[@]}"
  "${train[@]}" --dry-run -- "$@"
  echo "${delete[@]}"
  exit 0
fi

state() {
  "${queued[@]}" describe "$name" "${where[@]}" --format 'value(state.state)' 2>/dev/null || echo ABSENT
}

while true; do
  now=$(state)
  echo "$(date -u +%FT%TZ) $name: $now"
  case "$now" in
    ABSENT) "${create[@]}" ;;
    ACTIVE)
      status=0
      "${train[@]}" -- "$@" || status=$?
      if [ "$status" -eq 0 ]; then
        "${delete[@]}"
        exit 0
      fi
      if [ "$(state)" = ACTIVE ]; then
        echo "training ended with status $status, and the TPU is still there: see above" >&2
        exit "$status"
      fi
      ;;
    SUSPENDED | FAILED) "${delete[@]}" ;;
    *) sleep "${POLL_SECONDS:-30}" ;;
  esac
done
