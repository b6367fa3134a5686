#!/usr/bin/env bash
# Keeps one command running although its TPU may be taken away.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ACCELERATOR_TYPE=${ACCELERATOR_TYPE-v5litepod-8}
create=()
install=()
run=()
pin=yes
run_dir=""
bucket=""
retries=10
copy_minutes=10
delete=no
poll_s=${POLL_S-30}
max_stumbles=10

usage() {
  cat <<'TEXT'
Usage: resume.sh --name NAME --zone ZONE --project PROJECT --run-dir DIR --bucket gs://BUCKET/PATH
                 [options] -- COMMAND [ARGUMENT...]

Asks for the TPU if there is none, installs, starts COMMAND (run.sh) and watches both. Meanwhile the
run folder is copied to the bucket. When the TPU is taken away, deletes what is left of it, asks
again, installs the same commit, brings the run folder back, and starts COMMAND again, which goes on
from its newest checkpoint. It runs on your own machine: Ctrl-C ends the watching only, and the same
call goes on with it.

COST: asks for TPUs again and again, unattended, at most --retries times. Without --delete the TPU
is billed on after COMMAND has ended. The copies in the bucket are billed until you remove them.

  --name NAME        TPU_NAME
  --zone ZONE        ZONE
  --project PROJECT  PROJECT
  --run-dir DIR      run.dir of COMMAND, inside ~/jgrpo
  --bucket URL       where its copy is kept; the workers' service account must be able to write it
  --copy-every N     minutes between copies, and so what a preemption costs; default 10
  --retries N        how often COMMAND is started anew after the first time; default 10
  --delete           delete the TPU when COMMAND has succeeded and its folder has been copied
  --type TYPE        ACCELERATOR_TYPE  default v5litepod-8, as for create.sh
  --runtime VERSION, --spot (default), --reserved, --on-demand, --queue-for TIME: as for create.sh
  --clone URL, --ref REF, --extras LIST: as for install.sh; default: the commit of this checkout,
                     held for the whole time in refs/jgrpo/NAME
  --no-preflight     as for run.sh
  --dry-run          print the commands of one preemption and run nothing
  --help             this text

Exit status: 0 COMMAND has succeeded; 1 ten failures in a row of gcloud, a worker or the preflight,
             or the TPU was deleted by somebody else; 2 wrong arguments; 3 interrupted more often
             than --retries; 4 COMMAND has failed.
TEXT
}

while (($#)); do
  case $1 in
    --)
      shift
      break
      ;;
    --spot | --reserved | --on-demand)
      create+=("$1")
      shift
      ;;
    --no-preflight)
      run+=("$1")
      shift
      ;;
    --delete)
      delete=yes
      shift
      ;;
    --runtime | --queue-for)
      needs_value "$@"
      create+=("$1" "$2")
      shift 2
      ;;
    --clone | --ref | --extras)
      needs_value "$@"
      install+=("$1" "$2")
      [[ $1 == --extras ]] || pin=no
      shift 2
      ;;
    --type | --run-dir | --bucket | --retries | --copy-every)
      needs_value "$@"
      case $1 in
        --type) ACCELERATOR_TYPE=$2 ;;
        --run-dir) run_dir=${2%/} ;;
        --bucket) bucket=${2%/} ;;
        --retries) retries=$2 ;;
        --copy-every) copy_minutes=$2 ;;
      esac
      shift 2
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
(($#)) || die "no command; write it after --, see $script --help"
[[ $retries =~ ^[0-9]+$ ]] || die "--retries must be a number, got '$retries'"
[[ $copy_minutes =~ ^[0-9]+$ ]] ||
  die "--copy-every must be a number of minutes, got '$copy_minutes'"
[[ $run_dir =~ ^[A-Za-z0-9_][A-Za-z0-9_./-]*$ && $run_dir != *..* ]] ||
  die "--run-dir must be a folder inside ~/jgrpo, such as runs/mine, got '$run_dir'"
[[ $bucket =~ ^gs://[A-Za-z0-9_.-]+/[A-Za-z0-9_./-]+$ ]] ||
  die "--bucket must be a folder of a bucket, such as gs://mine/runs/mine, got '$bucket'"
check_settings
export TPU_NAME ZONE PROJECT ACCELERATOR_TYPE
command=$(quoted "$@")
dry=()
[[ $dry_run == no ]] || dry=(--dry-run)

call() { # call SCRIPT ARGUMENT...: runs a script beside this one
  "$here/$1.sh" ${dry[@]+"${dry[@]}"} "${@:2}"
}

restore() { # on all workers; a folder that is there already is newer than its copy
  on_workers all "set -e
cd ~/jgrpo
if [ -e $run_dir ]; then exit 0; fi
found=\$(gcloud storage ls $bucket/ 2>&1) || case \$found in
  *'matched no objects'*) exit 0 ;;
  *) echo \"\$(hostname): \$found\" >&2; exit 1 ;;
esac
mkdir -p $run_dir.part
gcloud storage rsync --recursive $bucket $run_dir.part
mv $run_dir.part $run_dir"
}

copy() { # the run folder, from worker 0, which writes it, to the bucket
  on_workers 0 "cd ~/jgrpo
if [ -e $run_dir ]; then
  gcloud storage rsync --recursive --delete-unmatched-destination-objects $run_dir $bucket
fi"
}

look() { # prints what has become of COMMAND on worker 0: its log ends with its exit status
  on_workers 0 "if [ \"\$(cat ~/jgrpo-logs/command 2>/dev/null)\" != $(quote "$command") ]; then
  echo '== not started'
elif tmux has-session -t =jgrpo 2>/dev/null; then
  echo '== running'
else
  tail -n 1 ~/jgrpo-logs/run.log
fi"
}

if [[ $pin == yes ]]; then
  run git -C "${here%/*}" update-ref "refs/jgrpo/$TPU_NAME" HEAD
  install+=(--ref "refs/jgrpo/$TPU_NAME")
fi
if [[ $dry_run == yes ]]; then
  call delete --yes
  call create ${create[@]+"${create[@]}"}
  call install ${install[@]+"${install[@]}"}
  restore
  call run ${run[@]+"${run[@]}"} -- "$@"
  look
  copy
  exit 0
fi

started=no # whether this call has started COMMAND
tries=0    # how often it had to be started anew
stumbles=0 # failures in a row
seen=no    # whether the TPU that was asked for last has been listed
copied=$SECONDS

stumble() { # stumble WHAT: a failure that may pass, or come from a preemption that is not seen yet
  stumbles=$((stumbles + 1))
  ((stumbles < max_stumbles)) ||
    fail "$1; failure $stumbles in a row. If $TPU_NAME is ACTIVE it is billed until delete.sh"
  echo "$script: $1; looking again" >&2
}

try_again() { # try_again WHY: counts; ends with status 3 if it has been too often
  if ((tries >= retries)); then
    echo "$script: $1, after $tries retries; if $TPU_NAME exists it is billed until delete.sh" >&2
    exit 3
  fi
  tries=$((tries + 1))
  echo "$1; retry $tries of $retries"
}

replace() { # replace WHY: deletes what is left of a TPU, so that another one is asked for
  if call delete --yes; then
    seen=no
    try_again "$1"
  else
    stumble "delete.sh failed"
  fi
}

start() { # start COMMAND...
  if call install ${install[@]+"${install[@]}"} && restore &&
    call run ${run[@]+"${run[@]}"} -- "$@"; then
    started=yes
    stumbles=0
    copied=$SECONDS
  else
    stumble "the command could not be started"
  fi
}

attend() { # attend COMMAND...: what is to be done while the TPU is ACTIVE
  local answer node
  if ! answer=$(look); then
    # A node can be gone before its request says so.
    node=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "--zone=$ZONE" "--project=$PROJECT" \
      "--format=value(state)") || node=""
    case $node in
      PREEMPTED | TERMINATED) replace "$TPU_NAME is $node" ;;
      *) stumble "worker 0 does not answer" ;;
    esac
    return 0
  fi
  case ${answer##*$'\n'} in
    '== running')
      stumbles=0
      if ((SECONDS - copied >= 60 * copy_minutes)); then
        copy || echo "$script: the run folder was not copied this time" >&2
        copied=$SECONDS
      fi
      ;;
    '== not started') start "$@" ;;
    '== exit status 0')
      copy || fail "COMMAND has succeeded, but its folder was not copied; $TPU_NAME is billed"
      echo "the command has succeeded; its folder is in $bucket"
      [[ $delete == no ]] || call delete --yes || fail "delete.sh failed; $TPU_NAME is billed"
      [[ $delete == yes ]] || echo "$TPU_NAME is billed until delete.sh"
      exit 0
      ;;
    '== exit status '*) ended "${answer##*== }" "$@" ;;
    *) ended "no exit status" "$@" ;; # the worker has been restarted
  esac
}

ended() { # ended HOW COMMAND...: without success; 75 says that it was interrupted and has saved
  if [[ $started == no ]]; then
    start "${@:2}"
  elif [[ $1 == "exit status 75" || $1 == "no exit status" ]]; then
    try_again "the command was interrupted ($1)"
    start "${@:2}"
  else
    copy || echo "$script: the run folder was not copied" >&2
    echo "$script: the command has failed: $1; $TPU_NAME is billed until delete.sh" >&2
    exit 4
  fi
}

while true; do
  if rows=$(list_states); then
    state=$(awk -v name="$TPU_NAME" '$1 == name { print $2 }' <<<"$rows")
    [[ -z $state ]] || seen=yes
    case $state in
      ACTIVE) attend "$@" ;;
      FAILED | SUSPENDED) replace "$TPU_NAME is $state (expired or taken away)" ;;
      '')
        [[ $seen == no ]] || fail "somebody else has deleted $TPU_NAME; it is not asked for again"
        call create ${create[@]+"${create[@]}"} || stumble "create.sh failed"
        ;;
      *) echo "$TPU_NAME is $state; waiting" ;;
    esac
  else
    stumble "gcloud could not list the queued resources of $ZONE"
  fi
  sleep "$poll_s"
done
