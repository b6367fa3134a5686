"""Shells in which the scripts of tpu_setup/ meet programs of ours in place of a cloud's."""

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tpu_setup"
SETTINGS = {"TPU_NAME": "box", "ZONE": "us-west4-a", "PROJECT": "mine"}
OVERRIDES = ("ACCELERATOR_TYPE", "RUNTIME_VERSION", "RESERVATION", "TMUX", *SETTINGS)
PROGRAMS = ("gcloud", "xpk", "sky", "kubectl")

FORBIDDEN = '#!/bin/sh\necho called >>"$CALLED"\nexit 99\n'
LOCAL = """#!/usr/bin/env bash
printf '%s\\n' "${*:1:4}" >>"$CALLED"
case "$3 $4" in
  'queued-resources list') if [[ -s $STATES ]]; then sed -n 1p "$STATES"; sed -i 1d "$STATES"; fi ;;
  'tpu-vm scp') cp "$5" "$HOME/${6#*:}" ;;
  'tpu-vm ssh')
    for word in "$@"; do
      case $word in --command=*) (cd "$HOME" && bash -c "${word#--command=}") || exit ;; esac
    done ;;
esac
"""
CLOUD = """#!/usr/bin/env bash
printf '%s\\n' "${*:1:4}" >>"$CALLED"
place() { case $1 in gs://*) echo "$CLOUD/${1#gs://}" ;; *) echo "$1" ;; esac; }
case "$1 $2 $3 $4" in
  'storage ls '*)
    [[ ! -e $CLOUD/denied ]] || { echo 'ERROR: you may not read it' >&2; exit 1; }
    [[ -e $(place "$3") ]] || { echo 'One or more URLs matched no objects.' >&2; exit 1; } ;;
  'storage rsync '*)
    to=$(place "${*: -1}")
    mkdir -p "$to" && cp -r "$(place "${*: -2:1}")/." "$to" ;;
  *' queued-resources list')
    [[ ! -e $CLOUD/hook ]] || bash "$CLOUD/hook"
    [[ ! -e $CLOUD/state ]] || echo "box $(cat "$CLOUD/state")" ;;
  *' queued-resources create') cat "$CLOUD/next" >"$CLOUD/state" ;;
  *' queued-resources delete') rm -f "$CLOUD/state" ;;
  *' tpu-vm describe') cat "$CLOUD/node" ;;
  *' tpu-vm ssh')
    [[ ! -e $CLOUD/silent ]] || exit 255
    for word in "$@"; do
      case $word in --command=*) (cd "$HOME" && bash -c "${word#--command=}") || exit ;; esac
    done ;;
esac
"""


class Shell:
    """Runs the scripts beside a `gcloud`, `xpk`, `sky` and `kubectl` of ours, all one program."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.home = folder, folder / "home"
        self.called, self.states = folder / "called", folder / "states"
        (folder / "bin").mkdir()
        self.home.mkdir()
        for name in PROGRAMS:
            (folder / "bin" / name).write_text(program)
            (folder / "bin" / name).chmod(0o755)
        self.environment = {key: value for key, value in os.environ.items() if key not in OVERRIDES}
        self.environment |= {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CALLED": str(self.called),
            "STATES": str(self.states),
            "CLOUD": str(folder),
            "HOME": str(self.home),
            "TMPDIR": str(folder),
            "TMUX_TMPDIR": str(folder),
            "POLL_S": "0",
        }

    def __call__(self, script: str, *arguments: str, **environment: str):
        return subprocess.run(
            ["bash", str(FOLDER / f"{script}.sh"), *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def calls(self) -> list[str]:
        return self.called.read_text().splitlines() if self.called.exists() else []


def dry(shell, script, *arguments, **environment):
    """The commands of a dry run, each as its words; `script` may be a script and its action."""
    name, *action = script.split()
    done = shell(name, *action, "--dry-run", *arguments, **(SETTINGS | environment))
    assert done.returncode == 0, done.stderr
    lines: list[list[str]] = []
    for word in shlex.split(done.stdout):
        if word in (*PROGRAMS, "git", "rm"):
            lines.append([])
        lines[-1].append(word)
    return lines
