#!/usr/bin/env bash
# Starts one command on every worker of a TPU, detached, with its output in a log.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

ACCELERATOR_TYPE=${ACCELERATOR_TYPE-}
action=start
preflight=yes

usage() {
  cat <<'TEXT'
Usage: run.sh --name NAME --zone ZONE --project PROJECT [options] -- COMMAND [ARGUMENT...]
       run.sh --name NAME --zone ZONE --project PROJECT --stop

Starts COMMAND in ~/jgrpo on every worker, in a tmux session named jgrpo that outlives the
connection; output is added to ~/jgrpo-logs/run.log (logs.sh shows it). One command at a time: the
same one is not started twice, another one is refused.

First all workers together check chips, memory, network, clocks, disks and versions; if a check
fails, the worker is named and nothing is started.

COST: the TPU is billed after COMMAND has ended too, and while nothing runs, until delete.sh.

  --name NAME        TPU_NAME
  --zone ZONE        ZONE
  --project PROJECT  PROJECT
  --type TYPE        ACCELERATOR_TYPE  what the preflight expects; default: any number of chips, if
                     all workers have as many
  --no-preflight     start without the checks
  --stop             interrupt the command, as Ctrl-C would
  --dry-run          print the gcloud command and run nothing
  --help             this text

Example: run.sh -- .venv/bin/python train.py configs/grpo_gsm8k_qwen3_0.6b_v5e8.yaml
TEXT
}

while (($#)); do
  case $1 in
    --)
      shift
      break
      ;;
    --stop)
      action=stop
      shift
      ;;
    --no-preflight)
      preflight=no
      shift
      ;;
    --type)
      needs_value "$@"
      ACCELERATOR_TYPE=$2
      shift 2
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
check_settings
if [[ $action == stop ]]; then
  (($# == 0)) || die "--stop takes no command"
  # shellcheck disable=SC2016 # for the shell of the worker
  on_workers all 'if tmux has-session -t =jgrpo 2>/dev/null; then
  tmux send-keys -t =jgrpo: C-c
  echo "$(hostname): interrupted"
else
  echo "$(hostname): nothing is running"
fi'
  exit
fi
(($#)) || die "no command; write it after --, see $script --help"

check=""
if [[ $preflight == yes ]]; then
  arguments=(.venv/bin/python -m jgrpo.parallel.preflight)
  chips=$(chips_of "$ACCELERATOR_TYPE")
  [[ -z $chips ]] || arguments+=(--chips "$chips")
  for word in "$@"; do
    [[ $word != run.dir=* ]] || arguments+=(--dir "${word#run.dir=}")
  done
  check="
$(quoted "${arguments[@]}") || {
  echo \"\$(hostname): the preflight failed, nothing was started; --no-preflight leaves it out\" >&2
  exit 1
}"
fi

# The log gets the command between a line that says when it began and one that says how it ended.
# shellcheck disable=SC2016 # for the shell of the worker
session='trap : INT
{ echo "== $(date -Is)"
cat ~/jgrpo-logs/command
bash ~/jgrpo-logs/command
echo "== exit status $?"; } >>~/jgrpo-logs/run.log 2>&1'
on_workers all "set -e
cd ~/jgrpo || { echo \"\$(hostname): no ~/jgrpo; run install.sh first\" >&2; exit 1; }
command=$(quote "$(quoted "$@")")
if tmux has-session -t =jgrpo 2>/dev/null; then
  running=\$(cat ~/jgrpo-logs/command)
  if [ \"\$running\" = \"\$command\" ]; then echo \"\$(hostname): is running already\"; exit 0; fi
  echo \"\$(hostname): another command is running: \$running; run.sh --stop ends it\" >&2
  exit 1
fi$check
mkdir -p ~/jgrpo-logs
printf '%s\\n' \"\$command\" >~/jgrpo-logs/command
tmux new-session -d -s jgrpo bash -c $(quote "$session")
echo \"\$(hostname): started\""
