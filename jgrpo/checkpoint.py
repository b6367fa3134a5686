"""Checkpoints of the train state: saved in the background, verified before they are loaded.

A finished checkpoint is `<run_dir>/checkpoints/<step>/`, as orbax writes a flat mapping from leaf
name (`params.layers.q`, `opt_state.1.count`) to array, plus `manifest.json`, written last: shape
and dtype of each leaf, size and SHA-256 of each file, and a SHA-256 of itself. A folder without a
manifest is one whose save did not finish; it is ignored. What goes into the state is not decided
here, nor is the format of exported models.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from jgrpo.files import sha256, sync_folder, write_atomically
from jgrpo.parallel import hosts
from jgrpo.types import TrainState

_MANIFEST = "manifest.json"
_LOG_EVERY_S = 30.0
_LOG = logging.getLogger(__name__)
_State = TypeVar("_State")
_Leaf: TypeAlias = jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic


class Checkpoints:
    """The checkpoints of one run. Every process of a multi-host run makes and calls one alike."""

    def __init__(
        self, run_dir: Path, keep: int, *, keep_best: int = 0, deadline_s: float = 1800.0
    ) -> None:
        """Nothing is read or written yet.

        Args:
          run_dir: the run folder, on storage that all processes share.
          keep: how many of the newest checkpoints stay on disk, at least 1.
          keep_best: how many of the best stay besides, by the scores given to `save`.
          deadline_s: seconds that a save may take.

        Raises:
          ValueError: if `keep` is less than 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._run_dir = run_dir.resolve()
        self._folder = checkpoints_folder(self._run_dir)
        self._keep = keep
        self._keep_best = keep_best
        self._deadline_s = deadline_s
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._pending: _Save | None = None
        self._stuck = False
        self._current: int | None = None

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, ascending; not verified."""
        return finished_steps(self._run_dir)

    def save(self, state: TrainState, scores: Mapping[int, float] | None = None) -> None:
        """Saves the state under its step, in the background, after the save before has finished.

        On return the state has been copied and may be donated. The step that was saved or
        restored last is not saved again: a step is a function of the run, so nothing can differ.

        Args:
          state: every leaf an array of nonzero size.
          scores: score of every step that has been evaluated, higher is better; `keep_best` goes
            by it.

        Raises:
          OSError: if the save before, or the start of this one, failed (disk full, read-only).
        """
        self.wait()
        step = int(state.step)
        if step == self._current:
            return
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            _remove(self._folder / str(step))
        leaves = _named_leaves(state)
        with self._naming(step):
            self._orbax.save(self._folder / str(step), args=ocp.args.PyTreeSave(leaves))
        shapes = {name: _describe(leaf) for name, leaf in leaves.items()}
        self._pending = _Save(lambda: self._finish(step, shapes, dict(scores or {})))
        self._pending.start()

    def wait(self) -> None:
        """Returns when the save in progress has finished, its manifest included.

        Raises:
          OSError: if it failed or missed its deadline; the checkpoints before are intact.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        waited_s = 0.0
        while waited_s < self._deadline_s and pending.is_alive():
            pending.join(min(_LOG_EVERY_S, self._deadline_s - waited_s))
            waited_s += _LOG_EVERY_S
            if pending.is_alive():
                _LOG.warning("still waiting for the checkpoint in %s", self._folder)
        if pending.is_alive():
            self._stuck = True
            raise TimeoutError(
                f"{self._folder}: a save has not finished within {self._deadline_s:g} s "
                "(checkpoint.deadline_s); the checkpoints before it are intact"
            )
        if pending.error is not None:
            raise pending.error

    def close(self) -> None:
        """Waits as `wait` does, raising as it does, and frees what the saves used."""
        try:
            self.wait()
        finally:
            if not self._stuck:
                self._orbax.close()

    def restore(self, like: _State, step: int) -> _State:
        """Loads the checkpoint of one step after verifying every byte of it.

        Args:
          like: a train state, or another pytree with the same leaf names, of arrays or
            `jax.ShapeDtypeStruct`: shape, dtype and sharding of each leaf. Content is not read.
          step: one of `steps()`.

        Returns:
          The saved state in the structure of `like`, bitwise; numpy arrays where it has them.

        Raises:
          ValueError: if a file is damaged, missing or foreign, or the leaves differ (all named).
        """
        folder = self._folder / str(step)
        return self._load(like, step, hosts.from_first(lambda: verify(folder)))

    def restore_latest(self, like: _State) -> _State | None:
        """Loads the newest good checkpoint; a damaged one is named in the log and passed over.

        Args:
          like: as for `restore`.

        Returns:
          The saved state, or None if the run has no finished checkpoint.

        Raises:
          ValueError: if there are checkpoints and all are damaged, or if the leaves differ.
        """
        found = hosts.from_first(lambda: newest_good(self._run_dir))
        return None if found is None else self._load(like, *found)

    def _load(self, like: _State, step: int, manifest: Mapping[str, Any]) -> _State:
        folder = self._folder / str(step)
        target = _named_leaves(like)
        _check_leaves(folder, saved=manifest["leaves"], target=target)
        arguments = {name: _restore_argument(leaf) for name, leaf in target.items()}
        request = ocp.args.PyTreeRestore(item=target, restore_args=arguments)
        loaded = self._orbax.restore(folder, args=request)
        self._current = step
        return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in target])

    def _finish(self, step: int, leaves: Mapping[str, Any], scores: Mapping[int, float]) -> None:
        with self._naming(step):
            self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            _write_manifest(self._folder / str(step), step, leaves)
            for other in set(self.steps()) - self._kept(step, scores):
                _remove(self._folder / str(other))
        self._current = step

    @contextlib.contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Names what was not saved, of which the start of a save may hear, or its end."""
        try:
            yield
        except ValueError as error:  # so tensorstore reports a write that failed
            raise OSError(f"{self._folder / str(step)}: was not saved: {error}") from error

    def _kept(self, step: int, scores: Mapping[int, float]) -> set[int]:
        """The newest and the best; steps above the one just saved are damaged, passed-over ones."""
        steps = [other for other in self.steps() if other <= step]
        scored = [other for other in steps if other in scores]
        best = sorted(scored, key=lambda other: (-scores[other], other))[: self._keep_best]
        return {*steps[-self._keep :], *best}

    def _remove_unfinished(self) -> None:
        """Frees the space of saves that were killed; safe because no save is in progress."""
        for path in list(self._folder.iterdir()):
            unfinished = _is_step(path.name) and not (path / _MANIFEST).is_file()
            if unfinished or ".orbax-checkpoint-tmp" in path.name:
                _remove(path)


class _Save(threading.Thread):
    """A save in the background. A daemon, so that one that hangs does not keep the process."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.error: Exception | None = None
        self._work = work

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # Raised again in the thread that waits.
            self.error = error


def checkpoints_folder(run_dir: Path) -> Path:
    """Where the checkpoints of a run lie, each in a folder named after its step."""
    return run_dir / "checkpoints"


def finished_steps(run_dir: Path) -> list[int]:
    """The steps of a run with a finished checkpoint, ascending; not verified."""
    folders = _step_folders(run_dir)
    return [int(folder.name) for folder in folders if (folder / _MANIFEST).is_file()]


def newest_good(
    run_dir: Path, say: Callable[[str], object] = _LOG.warning
) -> tuple[int, dict[str, Any]] | None:
    """Verifies the finished checkpoints of a run, newest first, until one is good.

    Args:
      run_dir: the run folder.
      say: is told of each checkpoint that is passed over, and why.

    Returns:
      Its step and its manifest, as `verify` gives it; None if no checkpoint is finished.

    Raises:
      ValueError: if there are finished checkpoints and all are damaged.
    """
    faults: list[str] = []
    for step in reversed(finished_steps(run_dir)):
        try:
            return step, verify(checkpoints_folder(run_dir) / str(step))
        except (ValueError, OSError) as error:
            say(f"the checkpoint of step {step} is not used: {error}")
            faults.append(str(error))
    if faults:
        raise ValueError(
            f"every checkpoint in {checkpoints_folder(run_dir)} is damaged: {'; '.join(faults)}. "
            "Put back a copy of one, or start again with another run.dir."
        )
    return None


def verify(folder: Path) -> dict[str, Any]:
    """Checks one checkpoint against its manifest, every byte of it.

    Args:
      folder: the checkpoint of one step.

    Returns:
      The manifest: `format`, `step`, `leaves` (shape and dtype by name), `files` (bytes and
      sha256 by path) and its own `sha256`.

    Raises:
      ValueError: names the first file that is damaged, truncated, missing or foreign.
      OSError: if a file cannot be read.
    """
    manifest = _read_manifest(folder / _MANIFEST)
    if str(manifest["step"]) != folder.name:
        raise ValueError(f"{folder / _MANIFEST}: is of step {manifest['step']}, not {folder.name}")
    present = _files(folder)
    for name, facts in manifest["files"].items():
        path = folder / name
        if name not in present:
            raise ValueError(f"{path}: is missing")
        if path.stat().st_size != facts["bytes"]:
            raise ValueError(f"{path}: has {path.stat().st_size} bytes, not {facts['bytes']}")
        if sha256(path) != facts["sha256"]:
            raise ValueError(f"{path}: its content is not what was saved (SHA-256 differs)")
    if foreign := sorted(present - set(manifest["files"])):
        raise ValueError(f"{folder / foreign[0]}: does not belong to the checkpoint")
    return manifest


def verify_all(run_dir: Path) -> dict[int, str]:
    """Checks every checkpoint of a run, every byte of it.

    Args:
      run_dir: the run folder.

    Returns:
      By step, ascending: what is wrong with it, or "" if it is good.

    Raises:
      ValueError: if the run has no checkpoints.
    """
    paths = _step_folders(run_dir)
    if not paths:
        raise ValueError(
            f"{checkpoints_folder(run_dir)}: no checkpoint; is {run_dir} a run folder?"
        )
    found = {}
    for path in paths:
        try:
            verify(path)
        except (ValueError, OSError) as error:
            found[int(path.name)] = str(error)
        else:
            found[int(path.name)] = ""
    return found


def _step_folders(run_dir: Path) -> list[Path]:
    """The folders of all steps, ascending, of unfinished saves too."""
    folder = checkpoints_folder(run_dir)
    paths = [path for path in folder.iterdir() if _is_step(path.name)] if folder.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name))


def _write_manifest(folder: Path, step: int, leaves: Mapping[str, Any]) -> None:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in sorted(_files(folder))
    }
    for path in [folder, folder.parent, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(path)
    manifest = {"format": 1, "step": step, "leaves": leaves, "files": files}
    manifest["sha256"] = _manifest_digest(manifest)
    write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=1))


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: is missing (there is no finished checkpoint of this step)")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged, not JSON ({error})") from error
    digest = manifest.pop("sha256", None) if isinstance(manifest, dict) else None
    if digest is None or digest != _manifest_digest(manifest):
        raise ValueError(f"{path}: is damaged (its own SHA-256 differs)")
    return manifest


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths} - {_MANIFEST}


def _remove(folder: Path) -> None:
    """Deletes a checkpoint, manifest first, so that a half-deleted one counts as unfinished."""
    if folder.exists():
        (folder / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _is_step(name: str) -> bool:
    return name.isdecimal() and str(int(name)) == name


def _named_leaves(state: Any) -> dict[str, _Leaf]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves of the train state share a dotted name"
    return named


def _describe(leaf: _Leaf) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _restore_argument(leaf: _Leaf) -> ocp.RestoreArgs:
    if isinstance(leaf, np.ndarray | np.generic):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _check_leaves(folder: Path, *, saved: Mapping[str, Any], target: Mapping[str, _Leaf]) -> None:
    wanted = {name: _describe(leaf) for name, leaf in target.items()}
    for name in sorted(set(saved) | set(wanted)):
        if saved.get(name) != wanted.get(name):
            raise ValueError(
                f"{folder}: leaf {name!r} is {_shown(saved.get(name))} in the checkpoint, but this "
                f"run needs {_shown(wanted.get(name))}; the config, model or optimizer has "
                "changed: restore the old setting, or start again with another run.dir"
            )


def _shown(leaf: Mapping[str, Any] | None) -> str:
    return "absent" if leaf is None else f"{leaf['dtype']}{leaf['shape']}"
