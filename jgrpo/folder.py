"""The run folder: who writes it, what it was started with, and its summary."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jgrpo import config_io
from jgrpo.config import Config
from jgrpo.files import read_json, read_json_if_there, write_atomically
from jgrpo.models.load import located
from jgrpo.parallel.hosts import is_first

_MAY_CHANGE = (
    *("log", "eval", "checkpoint", "run.steps", "run.dir", "run.grace_s", "run.profile"),
    *("run.host_timeout_s", "run.watchdog_s"),
    *("run.compile_ahead", "run.compile_cache", "mesh", "model.remat", "rollout.slots"),
    *("rollout.gather_weights", "optim.microbatch_completions", "optim.logp_chunk_tokens"),
)
"""Settings that a run may be continued with: they change no result but for the order of sums."""
_VERSIONS = ("jgrpo", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
_WHOLE_BYTES = 64 * 2**20
_EDGE_BYTES = 2**20


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process; the kernel frees it however the process ends.

    Raises:
      BlockingIOError: if another process holds it; names its host and pid.
      OSError: if the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise BlockingIOError(
                f"{folder} is in use by {owner} (run.lock); stop that run, or choose another "
                "run.dir"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def claim(
    folder: Path, cfg: Config, *, force: bool, further: Mapping[str, str] | None = None
) -> None:
    """Writes what the run is, or checks that the folder is this run's.

    `config.yaml` is the resolved config; `environment.json` holds versions, commit, devices
    and what else was chosen for them; `inputs.json` a fingerprint of every local file of model and
    data, and of the weights beside adapters wherever these are.

    Args:
      folder: the run folder; it exists.
      cfg: the config of this start.
      force: go on although config, model or data have changed.
      further: facts for `environment.json`.

    Raises:
      ValueError: if the folder was started with a config, a model or data that differ in what a
        result depends on; names each, with the old and the new value.
    """
    inputs = _fingerprints(cfg)
    if not force:
        _same_config(folder, cfg)
        _same_inputs(folder, inputs)
    write_atomically(folder / "config.yaml", config_io.dump(cfg))
    write_atomically(folder / "inputs.json", json.dumps(inputs, indent=1) + "\n")
    facts = {name: importlib.metadata.version(name) for name in _VERSIONS}
    devices = [str(device) for device in jax.devices()]
    facts |= {"commit": _commit(), "devices": devices, **(further or {})}
    write_atomically(folder / "environment.json", json.dumps(facts, indent=1) + "\n")


def check_base(folder: Path, cfg: Config) -> None:
    """Compares the weights that a run's adapters stand beside with those it was started with.

    Args:
      folder: the run folder.
      cfg: its config.

    Raises:
      ValueError: if a file has changed, is gone or is new; names each.
    """
    before = read_json_if_there(folder / "inputs.json")
    ours = {name: before[name] for name in before if name.startswith(f"{cfg.model.path}: ")}
    if changed := _changed(ours, _base_fingerprints(cfg)):
        raise ValueError(
            f"{folder}: its adapters were trained beside other weights than those of model.path:"
            "\n  " + "\n  ".join(changed) + "\nPut these back."
        )


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary written so far; empty before the first."""
    return read_json_if_there(folder / "summary.json")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`, all of it or nothing; of several processes the first does."""
    if is_first():
        write_atomically(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def _same_config(folder: Path, cfg: Config) -> None:
    path = folder / "config.yaml"
    if not path.exists():
        return
    changed = [
        f"{key}: was {old!r}, is {new!r}"
        for key, (old, new) in config_io.diff(config_io.load(path), cfg).items()
        if not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with another config:\n  " + "\n  ".join(changed) + "\nStart in "
            "another run.dir, set these back, or pass --force to go on regardless."
        )


def _same_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    path = folder / "inputs.json"
    if not path.exists():
        return
    if changed := _changed(read_json(path), inputs):
        raise ValueError(
            f"{folder} holds a run with other model or data files:\n  "
            + "\n  ".join(changed)
            + "\nPut these back, start in another run.dir, or pass --force to go on regardless."
        )


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The inputs that differ, and how."""
    return [
        f"{name} {_how(name in before, name in now)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _how(was: bool, is_there: bool) -> str:
    return "has changed" if was and is_there else "is gone" if was else "is new"


def _fingerprints(cfg: Config) -> dict[str, str]:
    """SHA-256 by file of what the config reads from disk; of large files, size and both ends."""
    found = _base_fingerprints(cfg)
    for setting in (cfg.model.path, cfg.data.path, cfg.data.heldout_path, cfg.data.skills):
        root = Path(setting).expanduser()
        if not setting or not root.exists():
            continue  # the embedded model, a hub id, or a task that makes its own problems
        found |= {str(path): _fingerprint(path) for path in _files(root)}
    return found


def _base_fingerprints(cfg: Config) -> dict[str, str]:
    """The same of the weights that adapters stand beside: no checkpoint holds these."""
    if not cfg.model.lora.rank:
        return {}
    root = located(cfg.model.path)
    folder = root if root.is_dir() else root.parent
    return {
        f"{cfg.model.path}: {path.relative_to(folder)}": _fingerprint(path) for path in _files(root)
    }


def _files(root: Path) -> list[Path]:
    paths = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [path for path in paths if path.is_file()]


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(-_EDGE_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def _commit() -> str | None:
    """The commit of the source that runs, with `+` if it has been edited; None outside git."""
    here = str(Path(__file__).parent)
    ask = ["git", "-C", here, "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
