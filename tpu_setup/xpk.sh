#!/usr/bin/env bash
# The same as the other scripts, on Google Kubernetes Engine by way of xpk.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

ACCELERATOR_TYPE=${ACCELERATOR_TYPE-v5litepod-8}
RESERVATION=${RESERVATION-}
capacity=spot
workload=jgrpo
bucket=""
image=python:3.12
restarts=10
follow=no

usage() {
  cat <<'TEXT'
Usage: xpk.sh ACTION --name CLUSTER --zone ZONE --project PROJECT [options]
              [-- COMMAND [ARGUMENT...]]

ACTION is one of
  create   make a GKE cluster with one TPU slice, and mount a bucket at /runs in its workloads
  run      start COMMAND in the last commit of this checkout, as the workload; not twice
  list     show the workloads and their states
  logs     show what the workload prints
  stop     delete the workload; the cluster stays
  delete   delete the cluster and all its workloads

A workload whose node is taken away waits for another and starts again, as it does after exit status
75 or a signal, at most --restarts times; COMMAND goes on if its run.dir lies in /runs.

COST: a cluster is billed from create until delete, with its nodes and control plane, whether
anything runs or not. The bucket is billed until you remove it.

  --name CLUSTER     TPU_NAME          of the cluster
  --zone ZONE        ZONE
  --project PROJECT  PROJECT
  --type TYPE        ACCELERATOR_TYPE  default v5litepod-8: eight v5e chips on one host
  --spot             default: cheapest; can be taken away at any moment
  --on-demand        the full price, not taken away
  --reserved         from the reservation named by the variable RESERVATION
  --bucket NAME      for create: bucket to mount at /runs; it must exist
  --workload NAME    of the workload; default jgrpo
  --image IMAGE      for run: image to put the commit on; default python:3.12
  --restarts N       for run; default 10
  --follow           for logs: go on showing new lines until Ctrl-C
  --dry-run          print the commands and run nothing
  --help             this text

Example: xpk.sh run -- python train.py configs/grpo_gsm8k_qwen3_0.6b_v5e8.yaml run.dir=/runs/first
TEXT
}

action=${1-}
case $action in
  create | run | list | logs | stop | delete) shift ;;
  -*) ;; # such as --help
  *) die "unknown action '$action'; see $script --help" ;;
esac
while (($#)); do
  case $1 in
    --)
      shift
      break
      ;;
    --spot | --on-demand | --reserved)
      capacity=${1#--}
      shift
      ;;
    --follow)
      follow=yes
      shift
      ;;
    --type | --bucket | --workload | --image | --restarts)
      needs_value "$@"
      case $1 in
        --type) ACCELERATOR_TYPE=$2 ;;
        --bucket) bucket=$2 ;;
        --workload) workload=$2 ;;
        --image) image=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
[[ $action != -* ]] || die "name an action first; see $script --help"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts must be a number, got '$restarts'"
[[ $action == run || $# == 0 ]] || die "$action takes no command"
[[ $action != run || $# -gt 0 ]] || die "no command; write it after --, see $script --help"
[[ $action != create || -n $bucket ]] ||
  die "create needs --bucket, where run folders outlive a node"
[[ $capacity != reserved || -n $RESERVATION ]] || die "--reserved needs the variable RESERVATION"
check_settings
needs_tool xpk https://github.com/AI-Hypercomputer/xpk
[[ $action != logs ]] || needs_tool kubectl https://kubernetes.io/docs/tasks/tools
place=("--cluster=$TPU_NAME" "--zone=$ZONE" "--project=$PROJECT")

list_workloads() {
  run xpk workload list "${place[@]}" "--filter-by-job=$workload"
}

find_workload() { # sets `there`: yes if the workload is listed; with --dry-run unknown, so no
  local rows
  rows=$(list_workloads) || fail "xpk could not list the workloads of $TPU_NAME"
  there=no
  if [[ $dry_run == yes ]]; then
    printf '%s\n' "$rows"
  elif awk -v name="$workload" '$1 == name { found = 1 } END { exit !found }' <<<"$rows"; then
    there=yes
  fi
}

create() {
  local price="--$capacity"
  [[ $capacity != reserved ]] || price="--reservation=$RESERVATION"
  # xpk itself goes on with a cluster that exists.
  run xpk cluster create "${place[@]}" "--tpu-type=$ACCELERATOR_TYPE" --num-slices=1 "$price" \
    --enable-gcsfuse-csi-driver
  local rows
  rows=$(run xpk storage list "${place[@]}") || fail "xpk could not list the storages of $TPU_NAME"
  [[ $dry_run == no ]] || printf '%s\n' "$rows"
  if [[ $dry_run == no && $rows == *jgrpo-runs* ]]; then
    echo "a bucket is mounted at /runs already"
  else
    run xpk storage attach jgrpo-runs "${place[@]}" --type=gcsfuse "--bucket=$bucket" \
      --mount-point=/runs --readonly=false --size=1 --auto-mount=true
  fi
  [[ $dry_run == yes ]] || echo "$TPU_NAME exists and is billed; next: $script run"
}

start() { # start COMMAND...
  local repository source inside chips
  find_workload
  if [[ $there == yes ]]; then
    echo "workload $workload exists; nothing was started (list shows it, stop deletes it)"
    return
  fi
  repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  source=${TMPDIR:-/tmp}/jgrpo-$TPU_NAME-$workload
  chips=$(chips_of "$ACCELERATOR_TYPE")
  inside="pip install --quiet --editable '.[tpu]' && "
  inside+="python -m jgrpo.parallel.preflight${chips:+ --chips $chips} --dir /runs && "
  inside+="exec $(quoted "$@")"
  # A clone of the last commit, so that xpk packs neither .venv nor runs/.
  run rm -rf "$source"
  run git clone --quiet --depth=1 "file://$repository" "$source"
  run xpk workload create "${place[@]}" "--workload=$workload" "--tpu-type=$ACCELERATOR_TYPE" \
    --num-slices=1 "--base-docker-image=$image" "--script-dir=$source" \
    "--max-restarts=$restarts" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=120 "--command=$inside"
  run rm -rf "$source"
  [[ $dry_run == yes ]] || echo "workload $workload was submitted; $script logs shows it"
}

stop() {
  find_workload
  if [[ $there == no && $dry_run == no ]]; then
    echo "there is no workload $workload in $TPU_NAME"
    return
  fi
  run xpk workload delete "${place[@]}" "--workload=$workload" --force
  [[ $dry_run == yes ]] || echo "workload $workload is deleted; the cluster is billed until delete"
}

delete() {
  local rows
  rows=$(run gcloud container clusters list "--project=$PROJECT" "--filter=name=$TPU_NAME" \
    "--format=value(name)") || fail "gcloud could not list the clusters of $PROJECT"
  [[ $dry_run == no ]] || printf '%s\n' "$rows"
  if [[ $dry_run == no && $rows != "$TPU_NAME" ]]; then
    echo "there is no cluster $TPU_NAME in $PROJECT; nothing is billed under this name"
    return
  fi
  run xpk cluster delete "${place[@]}" --force
  [[ $dry_run == yes ]] || echo "$TPU_NAME is deleted; the bucket stays"
}

case $action in
  create) create ;;
  run) start "$@" ;;
  list) list_workloads ;;
  logs)
    arguments=("--selector=jobset.sigs.k8s.io/jobset-name=$workload" --prefix)
    if [[ $follow == yes ]]; then arguments+=(--follow); else arguments+=(--tail=50); fi
    run gcloud container clusters get-credentials "$TPU_NAME" "--location=${ZONE%-*}" \
      "--project=$PROJECT"
    run kubectl logs "${arguments[@]}"
    ;;
  stop) stop ;;
  delete) delete ;;
esac
