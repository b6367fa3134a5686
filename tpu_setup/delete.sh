#!/usr/bin/env bash
# Deletes a TPU, its request and everything on its disks. This stops the billing.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

quiet=no

usage() {
  cat <<'TEXT'
Usage: delete.sh --name NAME --zone ZONE --project PROJECT [options]

Deletes the TPU, its request and everything on its disks: copy run folders away first. This stops
the billing. If NAME does not exist, says so and is content.

  --name NAME        TPU_NAME
  --zone ZONE        ZONE
  --project PROJECT  PROJECT
  --yes              do not ask
  --dry-run          print the gcloud commands and run nothing
  --help             this text
TEXT
}

while (($#)); do
  case $1 in
    --yes)
      quiet=yes
      shift
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
check_settings

find_state
if [[ -z $state && $dry_run == no ]]; then
  echo "$TPU_NAME does not exist in $ZONE; nothing is billed under this name"
  exit 0
fi
arguments=("--zone=$ZONE" "--project=$PROJECT" --force)
[[ $quiet == no ]] || arguments+=(--quiet)
run gcloud compute tpus queued-resources delete "$TPU_NAME" "${arguments[@]}"
[[ $dry_run == yes ]] || echo "$TPU_NAME is deleted"
