#!/usr/bin/env bash
# Shows what the command that run.sh started has printed.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

worker=0
lines=50
follow=no

usage() {
  cat <<'TEXT'
Usage: logs.sh --name NAME --zone ZONE --project PROJECT [options]

Shows the end of ~/jgrpo-logs/run.log, and whether the command still runs.

  --name NAME        TPU_NAME
  --zone ZONE        ZONE
  --project PROJECT  PROJECT
  --worker WHICH     number of a worker, or all; default 0
  --lines N          how many lines; default 50
  --follow           go on showing new ones until Ctrl-C (the command runs on)
  --dry-run          print the gcloud command and run nothing
  --help             this text
TEXT
}

while (($#)); do
  case $1 in
    --worker | --lines)
      needs_value "$@"
      case $1 in
        --worker) worker=$2 ;;
        --lines) lines=$2 ;;
      esac
      shift 2
      ;;
    --follow)
      follow=yes
      shift
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker must be a number or all, got '$worker'"
[[ $lines =~ ^[0-9]+$ ]] || die "--lines must be a number, got '$lines'"
check_settings

on_workers "$worker" "if tmux has-session -t =jgrpo 2>/dev/null; then
  echo \"\$(hostname): running\"
else
  echo \"\$(hostname): nothing is running\"
fi
tail -n $lines$([[ $follow == no ]] || printf ' -F') ~/jgrpo-logs/run.log"
