# shellcheck shell=bash
# What the scripts beside this file share: settings, checks, and how a command is shown and run.
# Sourced, never run; the sourcing script has set -euo pipefail and defines usage.

# Settings come from the environment; flags override them.
TPU_NAME=${TPU_NAME-}
ZONE=${ZONE-}
PROJECT=${PROJECT-}
dry_run=no
script=${0##*/}

die() { # die MESSAGE: a mistake of the user
  echo "$script: $1" >&2
  exit 2
}

fail() { # fail MESSAGE: the mistake is not in the arguments
  echo "$script: $1" >&2
  exit 1
}

needs_value() { # needs_value "$@": dies unless a flag is followed by its value
  [[ $# -ge 2 && -n $2 && $2 != -* ]] || die "$1 needs a value"
}

# shellcheck disable=SC2034 # `taken` is read by the sourcing script
common_flag() { # common_flag "$@": takes a flag that all scripts have; `taken` words are used up
  taken=1
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --dry-run) dry_run=yes ;;
    --name | --zone | --project)
      needs_value "$@"
      taken=2
      case $1 in
        --name) TPU_NAME=$2 ;;
        --zone) ZONE=$2 ;;
        --project) PROJECT=$2 ;;
      esac
      ;;
    *) die "unknown argument '$1'; see $script --help" ;;
  esac
}

check_settings() { # dies unless name, zone and project are known, and gcloud can be called
  local missing=""
  [[ -n $TPU_NAME ]] || missing="$missing TPU_NAME (--name)"
  [[ -n $ZONE ]] || missing="$missing ZONE (--zone)"
  [[ -n $PROJECT ]] || missing="$missing PROJECT (--project)"
  [[ -z $missing ]] || die "not set:$missing; export the variable or give the flag"
  needs_tool gcloud https://cloud.google.com/sdk/docs/install
}

needs_tool() { # needs_tool PROGRAM URL: fails unless it can be called, or nothing will be
  [[ $dry_run == yes ]] || command -v "$1" >/dev/null ||
    fail "$1 is not installed; see $2, or use --dry-run"
}

chips_of() { # chips_of TYPE: prints how many chips it has; nothing if that is not known
  if [[ $1 =~ ^(v5litepod|v6e)-([0-9]+)$ ]]; then
    printf '%s' "${BASH_REMATCH[2]}"
  elif [[ $1 =~ ^(v2|v3|v4|v5p)-([0-9]+)$ ]]; then # these count cores, two a chip
    printf '%s' "$((BASH_REMATCH[2] / 2))"
  fi
}

runtime_of() { # runtime_of TYPE: prints its TPU software version; nothing if none is known
  # https://cloud.google.com/tpu/docs/runtimes
  case $1 in
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v5litepod-*) printf 'v2-alpha-tpuv5-lite' ;;
    v2-* | v3-* | v4-*) printf 'tpu-ubuntu2204-base' ;;
  esac
}

quote() { # quote WORD: prints the word so that a shell reads it back as it is
  local apostrophe="'\\''"
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "${1//\'/$apostrophe}" ;;
    *) printf '%s' "$1" ;;
  esac
}

quoted() { # quoted WORD...: prints a command that a shell reads back as these words
  local word separator=""
  for word in "$@"; do
    printf '%s' "$separator"
    quote "$word"
    separator=" "
  done
}

run() { # run COMMAND...: runs it, or with --dry-run prints it
  if [[ $dry_run == yes ]]; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

list_states() { # every queued resource of the zone and its state, a line each
  run gcloud compute tpus queued-resources list "--zone=$ZONE" "--project=$PROJECT" \
    "--format=value(name.basename(),state.state)"
}

# shellcheck disable=SC2034 # `state` is read by the sourcing script
find_state() { # sets `state`: of the queued resource, empty if there is none or with --dry-run
  local rows
  rows=$(list_states) || fail "gcloud could not list the queued resources of $ZONE"
  if [[ $dry_run == yes ]]; then
    printf '%s\n' "$rows"
    state=""
  else
    state=$(awk -v name="$TPU_NAME" '$1 == name { print $2 }' <<<"$rows")
  fi
}

on_workers() { # on_workers WHICH COMMAND: runs a shell command on `all` workers, or one by number
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" "--project=$PROJECT" \
    "--worker=$1" "--command=$2"
}
