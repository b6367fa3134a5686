#!/usr/bin/env bash
# Asks Google Cloud for a TPU as a queued resource.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

ACCELERATOR_TYPE=${ACCELERATOR_TYPE-v5litepod-8}
RUNTIME_VERSION=${RUNTIME_VERSION-}
capacity=spot
queue_for=6h
wait_minutes=0
poll_s=${POLL_S-30}

usage() {
  cat <<'TEXT'
Usage: create.sh --name NAME --zone ZONE --project PROJECT [options]

Asks for a TPU as a queued resource. If NAME exists already, says so and asks for nothing.

COST: billing starts when the request becomes ACTIVE, which may be hours later and unattended, and
goes on, whether anything runs or not, until delete.sh.

  --name NAME        TPU_NAME   of the queued resource and of its node
  --zone ZONE        ZONE       such as us-west4-a
  --project PROJECT  PROJECT    Google Cloud project that pays
  --type TYPE        ACCELERATOR_TYPE  default v5litepod-8: eight v5e chips on one host
  --runtime VERSION  RUNTIME_VERSION   default: the one for the type
  --spot             default: cheapest; can be taken away at any moment (the run continues from its
                     newest checkpoint on the next TPU, if the run folder has been kept)
  --reserved         from a reservation of the project
  --on-demand        neither: the full price, not taken away
  --queue-for TIME   give up if there is no capacity within this time; default 6h
  --wait MINUTES     wait until it is ACTIVE, at most so long; default 0: return at once
  --dry-run          print the gcloud commands and run nothing
  --help             this text
TEXT
}

while (($#)); do
  case $1 in
    --spot | --reserved | --on-demand)
      capacity=${1#--}
      shift
      ;;
    --type | --runtime | --queue-for | --wait)
      needs_value "$@"
      case $1 in
        --type) ACCELERATOR_TYPE=$2 ;;
        --runtime) RUNTIME_VERSION=$2 ;;
        --queue-for) queue_for=$2 ;;
        --wait) wait_minutes=$2 ;;
      esac
      shift 2
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
[[ $wait_minutes =~ ^[0-9]+$ ]] || die "--wait must be a number of minutes, got '$wait_minutes'"
[[ -n $ACCELERATOR_TYPE ]] || die "ACCELERATOR_TYPE is empty; give --type, such as v5litepod-8"
[[ -n $RUNTIME_VERSION ]] || RUNTIME_VERSION=$(runtime_of "$ACCELERATOR_TYPE")
[[ -n $RUNTIME_VERSION ]] ||
  die "no runtime version is known for '$ACCELERATOR_TYPE'; give --runtime"
check_settings

explain_state() { # says what the state means; fails if there will never be a TPU
  case $state in
    ACTIVE) echo "$TPU_NAME is ACTIVE and is billed; next: install.sh" ;;
    FAILED | SUSPENDED | SUSPENDING)
      fail "$TPU_NAME is $state (expired, preempted or stopped); run delete.sh, then create.sh again"
      ;;
    DELETING) fail "$TPU_NAME is being deleted; try again in a minute" ;;
    *) echo "$TPU_NAME is ${state:-requested}; it will be billed once it is ACTIVE" ;;
  esac
}

find_state
if [[ -n $state ]]; then
  echo "$TPU_NAME exists; nothing was asked for"
else
  arguments=(
    "--node-id=$TPU_NAME" "--zone=$ZONE" "--project=$PROJECT"
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION"
    "--valid-until-duration=$queue_for"
  )
  [[ $capacity == on-demand ]] || arguments+=("--$capacity")
  run gcloud compute tpus queued-resources create "$TPU_NAME" "${arguments[@]}"
  [[ $dry_run == no ]] || exit 0
  find_state
fi
deadline=$((SECONDS + 60 * wait_minutes))
while [[ $state != @(ACTIVE|FAILED|SUSPENDED|SUSPENDING|DELETING) ]] && ((SECONDS < deadline)); do
  echo "$TPU_NAME is ${state:-not listed yet}; waiting"
  sleep "$poll_s"
  find_state
done
explain_state
[[ $wait_minutes == 0 || $state == ACTIVE ]] ||
  fail "$TPU_NAME is not ACTIVE after $wait_minutes minutes; it stays in the queue until delete.sh"
