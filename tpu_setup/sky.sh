#!/usr/bin/env bash
# The same as the other scripts, by SkyPilot: a managed job that survives preemptions.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

ACCELERATOR_TYPE=${ACCELERATOR_TYPE-v5litepod-8}
job=jgrpo
bucket=""
capacity=spot
follow=no

usage() {
  cat <<'TEXT'
Usage: sky.sh ACTION [options] [-- COMMAND [ARGUMENT...]]

ACTION is one of
  run      start COMMAND as a managed job, as sky_train.yaml says; not twice
  list     show the managed jobs and their states
  logs     show what the job prints
  stop     cancel the job; its TPU is deleted

SkyPilot finds a zone, makes the TPU, and deletes it when COMMAND ends. If it is taken away, or
COMMAND ends with status 75, another one is made and COMMAND started again, without a limit; after
other errors at most three times. COMMAND goes on if its run.dir lies in /runs, which is a bucket.

COST: the TPU is billed from its creation until COMMAND ends; SkyPilot's controller, a small machine
that watches the jobs, and the bucket are billed until you remove them (sky down, sky storage).

  --job NAME         of the job; default jgrpo
  --type TYPE        ACCELERATOR_TYPE  default v5litepod-8: eight v5e chips on one host
  --spot             default: cheapest; can be taken away at any moment
  --on-demand        the full price, not taken away
  --bucket NAME      for run: bucket for /runs; made if it does not exist
  --follow           for logs: go on showing new lines until Ctrl-C
  --dry-run          print the commands and run nothing
  --help             this text

Zone and project are SkyPilot's: see `sky check gcp`.
Example: sky.sh run --bucket my-runs -- .venv/bin/python train.py configs/quickstart.yaml \
           run.dir=/runs/first
TEXT
}

action=${1-}
case $action in
  run | list | logs | stop) shift ;;
  -*) ;; # such as --help
  *) die "unknown action '$action'; see $script --help" ;;
esac
while (($#)); do
  case $1 in
    --)
      shift
      break
      ;;
    --spot | --on-demand)
      capacity=${1#--}
      shift
      ;;
    --follow)
      follow=yes
      shift
      ;;
    --job | --type | --bucket)
      needs_value "$@"
      case $1 in
        --job) job=$2 ;;
        --type) ACCELERATOR_TYPE=$2 ;;
        --bucket) bucket=$2 ;;
      esac
      shift 2
      ;;
    --name | --zone | --project) die "unknown argument '$1'; see $script --help" ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
[[ $action != -* ]] || die "name an action first; see $script --help"
[[ $action == run || $# == 0 ]] || die "$action takes no command"
[[ $action != run || $# -gt 0 ]] || die "no command; write it after --, see $script --help"
[[ $action != run || -n $bucket ]] || die "run needs --bucket, where run folders outlive a TPU"
needs_tool sky https://docs.skypilot.co/en/latest/getting-started/installation.html

find_job() { # sets `there`: yes if a job of the name has not ended; with --dry-run unknown, so no
  local rows
  rows=$(run sky jobs queue --skip-finished --output json) || fail "sky could not list the jobs"
  there=no
  if [[ $dry_run == yes ]]; then
    printf '%s\n' "$rows"
  elif [[ $rows =~ \"job_name\":\ *\"$job\" ]]; then
    there=yes
  fi
}

case $action in
  run)
    chips=$(chips_of "$ACCELERATOR_TYPE")
    [[ -n $chips ]] || die "unknown TPU type '$ACCELERATOR_TYPE'; give one such as v5litepod-8"
    find_job
    if [[ $there == yes ]]; then
      echo "job $job has not ended; nothing was started ($script logs shows it, stop ends it)"
      exit 0
    fi
    repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    price=--use-spot
    [[ $capacity == spot ]] || price=--no-use-spot
    run sky jobs launch --yes --detach-run "--name=$job" "$price" \
      "--gpus=tpu-$ACCELERATOR_TYPE" "--workdir=$repository" \
      --env "BUCKET=$bucket" --env "COMMAND=$(quoted "$@")" \
      --env "CHIPS=$chips" "$repository/tpu_setup/sky_train.yaml"
    ;;
  list) run sky jobs queue ;;
  logs)
    if [[ $follow == yes ]]; then how=--follow; else how=--no-follow; fi
    run sky jobs logs "--name=$job" "$how"
    ;;
  stop)
    find_job
    if [[ $there == no && $dry_run == no ]]; then
      echo "no job $job is running"
      exit 0
    fi
    run sky jobs cancel --yes "--name=$job"
    ;;
esac
