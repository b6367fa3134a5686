"""A run's checkpoint as a Hugging Face directory that can be taken away.

Weights, tokenizer, sampling settings, a model card, the config of the run, and `jgrpo_export.json`,
written last, with the size and SHA-256 of every other file. The directory is made beside its place
and renamed: it is there whole or not at all. No learner, task or mesh is assembled, so a run of any
size exports on any machine that holds its weights once. What the weight files look like is decided
in `models/hf.py`, the text of the card in `model_card.py`.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jgrpo import __version__, config_io
from jgrpo.adapting import base_dtype, merged, save_peft, trained_axes
from jgrpo.checkpoint import checkpoints_folder, finished_steps, newest_good, verify
from jgrpo.config import Config, RolloutConfig
from jgrpo.files import sha256, sync_folder, write_atomically
from jgrpo.folder import check_base
from jgrpo.model_card import model_card
from jgrpo.models import hf
from jgrpo.models.architecture import Architecture, AxesTree
from jgrpo.models.load import LoadedModel, load
from jgrpo.parallel import hosts

_MANIFEST = "jgrpo_export.json"
_UNITS: Mapping[str, int] = {
    **{"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4},
    **{"KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4},
}
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
      directory: where it lies.
      step: steps that the weights have trained.
      files: size in bytes of every file by name, `jgrpo_export.json` left out.
    """

    directory: Path
    step: int
    files: Mapping[str, int]


def export(
    source: Path,
    to: Path,
    *,
    step: int | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = hf.MAX_SHARD_BYTES,
    adapter: bool = False,
    force: bool = False,
    say: Callable[[str], object] = _LOG.info,
) -> Exported:
    """Writes a checkpoint of a run as a directory that transformers, vLLM and SGLang load.

    Args:
      source: the run folder.
      to: the directory to make. An empty one and an earlier export are replaced; until the new
        one is complete the earlier one stays.
      step: the checkpoint; default: the newest good one.
      dtype: precision of the written weights: "float32", "bfloat16" or "float16".
      max_shard_bytes: weights beyond this are split over several files.
      adapter: write a run's adapters alone, as files of PEFT, and not what they make of the model.
      force: replace what lies in `to`, whatever it is.
      say: is told what is happening, a line at a time.

    Returns:
      What was written.

    Raises:
      ValueError: if the run or the step does not exist (naming the steps that do), the checkpoint
        is damaged or does not fit the model, a weight does not fit the precision, `to` holds
        something else, adapters are asked for where there are none, or the weights beside them
        have changed.
      OSError: if the disk is full or read-only; nothing of the new export is left then.
    """
    source, to = source.resolve(), to.expanduser().resolve()
    if not (source / "config.yaml").is_file():
        raise ValueError(f"{source} is not a run folder: it has no config.yaml")
    partial, old = (to.with_name(to.name + end) for end in (".partial", ".old"))
    _check_place(source, to, force, in_the_way=(partial, old))
    cfg = config_io.load(source / "config.yaml")
    say(f"reading the model at {cfg.model.path}")
    model = _model(source, cfg, adapter)
    # Planned before anything long, so that a wrong dtype or shard size is told at once.
    hf.plan_shards(model.arch, dtype, max_shard_bytes)
    trained, step = _weights(source, cfg, model.arch, step, say)
    needed = _num_bytes(trained, dtype) if adapter else hf.num_bytes(model.arch, dtype)
    with _temporary(partial, needed):
        if adapter:
            save_peft(partial, cfg, model, trained, dtype)
        else:
            _save(partial, cfg, model, trained, dtype, max_shard_bytes, say)
        shutil.copyfile(source / "config.yaml", partial / "jgrpo_config.yaml")
        names = {"name": to.name, "step": step, "dtype": dtype}
        card = model_card(source, cfg, model, **names, adapter=adapter)
        (partial / "README.md").write_text(card, encoding="utf-8")
        files = _finish(partial, source, step, dtype)
        _publish(partial, to, old)
    say(f"wrote step {step} to {to} ({sum(files.values()) / 1e6:,.1f} MB)")
    return Exported(directory=to, step=step, files=files)


def parse_bytes(text: str) -> int:
    """A number of bytes from text such as "2GB", "500MB" or "1.5GiB".

    Args:
      text: a number with a unit: B, KB, MB, GB, TB (powers of 1000), KiB to TiB (of 1024), or none.

    Returns:
      The number, rounded down.

    Raises:
      ValueError: if it is not such a text, or less than one byte.

    Example:
      >>> parse_bytes("2GB"), parse_bytes("1.5 KiB"), parse_bytes("20000")
      (2000000000, 1536, 20000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found and _UNITS.get(found[2].upper())
    number = int(float(found[1]) * unit) if found and unit else 0
    if number < 1:
        raise ValueError(f"must be a size such as 2GB, 500MB or 1.5GiB, got {text!r}")
    return number


def generation_config(rollout: RolloutConfig, model: LoadedModel) -> dict[str, Any]:
    """The content of generation_config.json: the end tokens, and sampling as it was in training.

    Args:
      rollout: how completions were sampled.
      model: for the end tokens and the size of the vocabulary.
    """
    eos = list(model.eos_ids)
    content: dict[str, Any] = {
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": model.pad_id,
        "do_sample": rollout.temperature > 0,
    }
    if model.tokenizer.bos_token_id is not None:
        content["bos_token_id"] = model.tokenizer.bos_token_id
    if rollout.temperature > 0:
        content |= {
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            # Readers do not agree on what turns top-k off (0, -1), and transformers takes 50 if
            # nothing is said; the whole vocabulary means the same to all of them.
            "top_k": rollout.top_k or model.arch.vocab_size,
        }
        if rollout.min_p > 0:
            content["min_p"] = rollout.min_p
    return content


def _model(source: Path, cfg: Config, adapter: bool) -> LoadedModel:
    """Architecture and tokenizer; the weights of the start where adapters are merged into them."""
    check_base(source, cfg)
    rank = cfg.model.lora.rank
    if adapter and not rank:
        raise ValueError(f"{source} has trained all weights (model.lora.rank 0): it has no adapter")
    dtype = base_dtype(cfg)
    model = load(cfg.model.path, init=cfg.model.init, seed=cfg.run.seed, param_dtype=dtype)
    return model if rank and not adapter else dataclasses.replace(model, params={})


def _save(
    folder: Path,
    cfg: Config,
    model: LoadedModel,
    trained: PyTree,
    dtype: str,
    max_shard_bytes: int,
    say: Callable[[str], object],
) -> None:
    """Writes the whole model, with its adapters merged if these are what was trained."""
    hf.save(
        folder,
        model.arch,
        merged(cfg, model, trained) if cfg.model.lora.rank else trained,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        tokenizer=model.tokenizer,
        generation=generation_config(cfg.rollout, model),
        say=say,
    )


def _num_bytes(tree: PyTree, dtype: str) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) * jnp.dtype(dtype).itemsize


def _weights(
    source: Path, cfg: Config, arch: Architecture, step: int | None, say: Callable[[str], object]
) -> tuple[PyTree, int]:
    """What was trained, from a checkpoint of which every byte is verified, and its step."""
    steps = finished_steps(source)
    if not steps:
        raise ValueError(f"{source} has no finished checkpoint")
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        raise ValueError(f"{source} has no checkpoint of step {step}; there are: {listed}")
    say(f"verifying the checkpoint of step {steps[-1] if step is None else step}")
    folder = checkpoints_folder(source)
    try:
        found = newest_good(source, say) if step is None else (step, verify(folder / str(step)))
    except (ValueError, OSError) as error:
        raise ValueError(f"no good checkpoint to export: {error}") from error
    assert found is not None, "a finished checkpoint is good or damaged"
    step, manifest = found
    return _read(folder / str(step), *trained_axes(cfg, arch), manifest["leaves"]), step


def _read(
    folder: Path, table: AxesTree, sizes: Mapping[str, int], saved: Mapping[str, Any]
) -> PyTree:
    """The parameters of a verified checkpoint as numpy arrays; the optimizer's are not read."""
    leaves, structure = jax.tree.flatten_with_path(table, is_leaf=lambda x: isinstance(x, tuple))
    wanted = {
        f"params.{jax.tree_util.keystr(path, simple=True, separator='.')}": [
            sizes[axis] for axis in axes
        ]
        for path, axes in leaves
    }
    found = {name: leaf["shape"] for name, leaf in saved.items() if name.startswith("params.")}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{folder}: {name} has shape {found.get(name)} in the checkpoint, but the model at "
                f"model.path implies {wanted.get(name)}; put back the model the run began with"
            )
    arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
    # partial_restore: only what `item` names is read.
    request = ocp.args.PyTreeRestore(
        item=dict.fromkeys(wanted, 0), restore_args=arguments, partial_restore=True
    )
    # Of several processes one exports: orbax is not to wait for the others.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=hosts.index(), active_processes={hosts.index()}
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        loaded = reader.restore(folder, args=request)
    return jax.tree.unflatten(structure, [loaded[name] for name in wanted])


def _check_place(source: Path, to: Path, force: bool, in_the_way: tuple[Path, ...]) -> None:
    """Refuses places whose replacement would destroy something; `force` allows some of them."""
    for name, path in (
        ("the run folder", source),
        ("the current folder", Path.cwd()),
        ("the home folder", Path.home().resolve()),
    ):
        if path.is_relative_to(to):
            raise ValueError(f"{to} is or holds {name}; export to a directory of its own")
    if to.is_relative_to(checkpoints_folder(source)):
        raise ValueError(f"{to} lies among the checkpoints of the run; export somewhere else")
    foreign = _foreign(to)
    if foreign and not force:
        raise ValueError(f"{to} {foreign}; choose another directory, or --force to replace it")
    for path in in_the_way:
        if foreign := _foreign(path):
            raise ValueError(f"{path} is needed while {to} is written, but it {foreign}; remove it")


def _foreign(path: Path) -> str | None:
    """What makes a path more than an earlier export; None if it is one, or empty, or absent."""
    if not path.is_dir():
        return "is a file" if path.exists() else None
    present = {file.relative_to(path).as_posix() for file in _files(path)}
    if not present:
        return None
    manifest = _manifest(path)
    if manifest is None:
        return f"is not empty (it holds {min(present)}) and is no export of jgrpo"
    # An export that was killed has no list of files: all of it is ours.
    foreign = present - {_MANIFEST, *manifest.get("files", present)}
    return f"is an export to which {min(foreign)} was added" if foreign else None


@contextlib.contextmanager
def _temporary(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Makes a folder and removes it if it is still there at the end, because something failed."""
    to = folder.with_suffix("")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        free = shutil.disk_usage(folder.parent).free
        if free < needed_bytes:
            needed = f"the weights take {needed_bytes / 1e6:,.1f} MB"
            raise OSError(errno.ENOSPC, f"{needed}, and {free / 1e6:,.1f} MB are free")
        folder.mkdir()
        # First, so that what a killed export leaves is known to be ours.
        write_atomically(folder / _MANIFEST, json.dumps({"format": 1, "jgrpo": __version__}))
        yield
    except OSError as error:
        raise OSError(error.errno, f"{to} was not written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finish(folder: Path, source: Path, step: int, dtype: str) -> dict[str, int]:
    """Writes the manifest over all other files, synced to disk; returns their sizes."""
    paths = sorted(path for path in _files(folder) if path.name != _MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }
    facts = {"format": 1, "jgrpo": __version__, "run": source.name, "step": step, "dtype": dtype}
    write_atomically(folder / _MANIFEST, json.dumps({**facts, "files": files}, indent=1) + "\n")
    return {name: entry["bytes"] for name, entry in files.items()}


def _publish(partial: Path, to: Path, old: Path) -> None:
    """Puts the finished folder in its place; a kill in between leaves the earlier one as `old`."""
    if to.exists():
        shutil.rmtree(old, ignore_errors=True)
        to.rename(old)
    partial.rename(to)
    sync_folder(to.parent)
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an export, or None if the folder is not one."""
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == 1 else None
