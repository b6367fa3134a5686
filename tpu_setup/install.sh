#!/usr/bin/env bash
# Puts jgrpo and its Python environment on every worker of a TPU.
set -euo pipefail
# shellcheck source=tpu_setup/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

url=""
ref=HEAD
extras=tpu
python_version=3.12

usage() {
  cat <<'TEXT'
Usage: install.sh --name NAME --zone ZONE --project PROJECT [options]

Puts jgrpo into ~/jgrpo on every worker, with Python and `.[tpu]` in ~/jgrpo/.venv. Called again, it
brings the source and the packages up to date; run folders stay.

By default the last commit of this checkout is copied (uncommitted changes are not).

  --name NAME        TPU_NAME
  --zone ZONE        ZONE
  --project PROJECT  PROJECT
  --clone URL        let the workers fetch from this git URL instead
  --ref REF          branch, tag or commit to install; default HEAD
  --extras LIST      extras of pyproject.toml to install; default tpu
  --dry-run          print the commands and run nothing
  --help             this text
TEXT
}

while (($#)); do
  case $1 in
    --clone | --ref | --extras)
      needs_value "$@"
      case $1 in
        --clone) url=$2 ;;
        --ref) ref=$2 ;;
        --extras) extras=$2 ;;
      esac
      shift 2
      ;;
    *)
      common_flag "$@"
      shift "$taken"
      ;;
  esac
done
check_settings

if [[ -z $url ]]; then
  repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  bundle=${TMPDIR:-/tmp}/jgrpo-$TPU_NAME.bundle
  if [[ -n $(git -C "$repository" status --porcelain --untracked-files=no) ]]; then
    echo "note: uncommitted changes are not copied" >&2
  fi
  run git -C "$repository" bundle create "$bundle" "$ref"
  run gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:jgrpo.bundle" \
    "--zone=$ZONE" "--project=$PROJECT" --worker=all
  run rm "$bundle"
  # shellcheck disable=SC2088 # the tilde is for the shell of the worker
  from='~/jgrpo.bundle'
else
  from=$(quote "$url")
fi

# The images come with a Python that is too old; uv brings one.
on_workers all "set -e
git init --quiet ~/jgrpo
cd ~/jgrpo
git fetch --quiet --force $from $(quote "$ref")
git checkout --quiet --force --detach FETCH_HEAD
export PATH=\"\$HOME/.local/bin:\$PATH\"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python $python_version .venv
uv pip install --quiet --python .venv/bin/python --editable $(quote ".[$extras]")
.venv/bin/python -c 'import jax, jgrpo; print(\"jgrpo\", jgrpo.__version__, \"jax\", jax.__version__)'"
