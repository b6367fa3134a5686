"""The run folder: whose it is, what it was started with, and its summary."""

import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import jax

from jgrpo import config_io
from jgrpo.config import Config
from jgrpo.files import write_atomically

_MAY_CHANGE = ("log", "eval", "checkpoint", "run.steps", "run.dir")
_VERSIONS = ("jgrpo", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


def claim(folder: Path, cfg: Config, *, force: bool) -> None:
    """Makes the folder and writes what the run is, or checks that the folder is this run's.

    `config.yaml` is the resolved config; `environment.json` holds versions, commit and devices.

    Args:
      folder: the run folder.
      cfg: the config of this start.
      force: go on although the config has changed.

    Raises:
      ValueError: if the folder was started with a config that differs in what a result depends
        on; names the keys.
    """
    path = folder / "config.yaml"
    if path.exists() and not force:
        changed = config_io.diff(config_io.load(path), cfg)
        changed = [key for key in changed if not key.startswith(_MAY_CHANGE)]
        if changed:
            raise ValueError(
                f"{folder} holds a run with another config; different: {', '.join(changed)}. "
                "Start in another run.dir, set these back, or pass --force to go on regardless."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, config_io.dump(cfg))
    facts = {name: importlib.metadata.version(name) for name in _VERSIONS}
    facts |= {"commit": _commit(), "devices": [str(device) for device in jax.devices()]}
    write_atomically(folder / "environment.json", json.dumps(facts, indent=1) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary written so far; empty before the first."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`, all of it or nothing."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def _commit() -> str | None:
    """The commit of the source that runs, with `+` if it has been edited; None outside git."""
    here = str(Path(__file__).parent)
    ask = ["git", "-C", here, "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
