#!/usr/bin/env bash
# Everything a change must pass, cheapest first; stops at the first failure.
# Usage: scripts/check.sh [--no-tests]. Needs the developer's .venv (`make venv`).
set -euo pipefail
cd "$(dirname "$0")/.."

tests=yes
case "${1-}" in
  '') ;;
  --no-tests) tests=no ;;
  *)
    echo "check.sh: unknown argument '$1'; allowed: --no-tests" >&2
    exit 2
    ;;
esac

bin=.venv/bin
[[ -x $bin/ruff ]] || {
  echo "check.sh: $bin/ruff is missing; run: make venv" >&2
  exit 2
}
export HF_HUB_OFFLINE=1
work=$(mktemp -d)
current=start
finish() {
  local status=$?
  rm -rf "$work"
  if ((status)); then
    echo "FAILED: $current (after ${SECONDS} s)" >&2
  else
    echo "all checks passed in ${SECONDS} s"
  fi
}
trap finish EXIT

step() { # step NAME COMMAND...
  current=$1
  echo "== $current"
  shift
  "$@"
}

shell_scripts() {
  $bin/shellcheck --external-sources scripts/*.sh tpu_setup/*.sh .ci/run
}

build() {
  # By way of the source distribution: a wheel built in the tree may pick up files of an old build/.
  $bin/python -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log" >&2
    return 1
  }
  $bin/python -m pip install --quiet --no-deps --disable-pip-version-check \
    --target "$work/site" "$work"/dist/*.whl
}

use_wheel() {
  local python=$PWD/$bin/python
  # From an empty folder, so that only the wheel can provide the package.
  mkdir "$work/empty"
  cd "$work/empty"
  export PYTHONPATH=$work/site
  "$python" - "$work/site" <<'PY'
import pathlib
import sys

import jgrpo
import jgrpo.cli

package = pathlib.Path(jgrpo.__file__).parent
assert package.parent == pathlib.Path(sys.argv[1]).resolve(), f"imported {package}, not the wheel"
needed = ["py.typed"] + [
    f"assets/tiny/{name}" for name in ("config.json", "tokenizer.json", "model.safetensors")
]
missing = [name for name in needed if not (package / name).is_file()]
assert not missing, f"the wheel lacks {missing}"
PY
  "$python" -m jgrpo methods >"$work/methods.txt"
  grep -q grpo "$work/methods.txt"
}

step "format" $bin/ruff format --check --quiet .
step "lint" $bin/ruff check --quiet .
step "types" $bin/basedpyright
step "shell scripts" shell_scripts
step "generated pages" $bin/python scripts/generate_docs.py --check
if [[ $tests == yes ]]; then
  step "tests" $bin/python -m pytest -n 2 --dist worksteal --quiet
fi
step "package builds" build
step "package works" use_wheel
