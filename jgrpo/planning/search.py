"""What to change so that a run fits a topology, and the mesh and microbatch that suit it best.

Candidates are ordered by arithmetic, which is quick; what is proposed has been compiled. None of
the changes alters what is learned, but for the order of float sums.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jgrpo.config import Config
from jgrpo.planning.look import Look, look
from jgrpo.planning.programs import LEARNING

TRIES = 4
"""Candidates that are compiled before the search is given up."""

MOST_TENSOR = 8
"""ASSUMED: beyond this many chips a tensor axis is all exchange."""

_HALVINGS = 5

Settings = dict[str, Any]
"""Values by dotted key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A config near to another one, and a look at it.

    Attributes:
      changes: settings that differ.
      look: by arithmetic while it is a candidate, compiled when it is proposed.
    """

    changes: Settings
    look: Look


def nearest(this: Look, say: Callable[[str], None]) -> Proposal | None:
    """The fewest and smallest changes with which a run fits; None if none was found.

    Fewer completions in a microbatch, remat `full`, more devices that share the weights, fewer
    slots, weights that are gathered for every token.

    Args:
      this: a run that does not fit.
      say: told of each try.
    """
    now = _settings(this)
    too_large = {p.name in LEARNING for p in this.programs if _exceeds(this, p.name)}
    choices: dict[str, list[Any]] = {"mesh.fsdp": _divisors(this.topology.count)}
    if True in too_large:
        choices |= {
            "optim.microbatch_completions": [
                size for size in _microbatches(this) if size <= now["optim.microbatch_completions"]
            ],
            "model.remat": [now["model.remat"], "full"],
        }
    if False in too_large:
        slots = now["rollout.slots"]
        choices["rollout.gather_weights"] = [now["rollout.gather_weights"], False]
        choices["rollout.slots"] = [
            slots >> i for i in range(_HALVINGS) if slots >> i >= this.topology.count
        ]

    def distance(found: Proposal) -> tuple[float, float]:
        """Settings that differ, and by how many doublings."""
        factors = [
            1.0 if isinstance(value, bool | str) else abs(math.log2(value / now[key]))
            for key, value in found.changes.items()
            if key in now
        ]
        return float(len(factors)), sum(factors, 0.0)

    return _first_that_fits(this, sorted(_candidates(this, choices), key=distance), say)


def best(this: Look, say: Callable[[str], None]) -> Proposal | None:
    """The mesh, microbatch and remat that fit and give the shortest step by estimate.

    Args:
      this: the run as its config says.
      say: told of each try.

    Raises:
      ValueError: if the chip's speed is not known.
    """
    if not this.topology.chip.flops:
        raise ValueError(f"--search needs chips of known speed, not {this.topology.name}")
    count = this.topology.count
    choices = {
        "mesh.fsdp": _divisors(count),
        "mesh.tensor": [n for n in _divisors(count) if n <= MOST_TENSOR],
        "mesh.expert": _divisors(count),
        "optim.microbatch_completions": _microbatches(this),
        "model.remat": ["none", "full"],
    }

    def seconds(found: Proposal) -> float:
        return math.inf if found.look.step is None else found.look.step.seconds

    return _first_that_fits(this, sorted(_candidates(this, choices), key=seconds), say)


def changed(cfg: Config, changes: Mapping[str, Any]) -> Config:
    """The config with other values of some settings, `section.field`."""
    for key, value in changes.items():
        section, name = key.split(".")
        inner = dataclasses.replace(getattr(cfg, section), **{name: value})
        cfg = dataclasses.replace(cfg, **{section: inner})
    return cfg


def _first_that_fits(
    this: Look, ordered: Iterable[Proposal], say: Callable[[str], None]
) -> Proposal | None:
    """Compiles candidates that should fit by arithmetic, as far as this was found to be right."""
    off = _factors(this)
    tried = 0
    for candidate in ordered:
        hbm, sizes = this.topology.chip.hbm, _sizes(candidate.look)
        if any(off.get(phase, 1.0) * size > hbm for phase, size in sizes.items()):
            continue
        words = " ".join(f"{key}={value}" for key, value in candidate.changes.items())
        say(f"trying {words or 'the config as it is'}")
        there = candidate.look
        found = look(there.cfg, there.arch, there.topology, say=say)
        if found.fits:
            return Proposal(changes=candidate.changes, look=found)
        tried += 1
        if tried == TRIES:
            break
        for phase, factor in _factors(found).items():
            off[phase] = max(off.get(phase, 1.0), factor)
    return None


def _candidates(this: Look, choices: Mapping[str, list[Any]]) -> Iterator[Proposal]:
    """Every choice of settings that the planner accepts, looked at by arithmetic."""
    now = _settings(this)
    for values in itertools.product(*choices.values()):
        wanted = dict(zip(choices, values, strict=True))
        changes = {key: value for key, value in wanted.items() if value != now[key]}
        if any(key.startswith("mesh.") for key in changes):
            changes["mesh.replica"] = -1
        cfg = changed(this.cfg, changes)
        with contextlib.suppress(ValueError):  # the model or the batch cannot be split so
            found = look(cfg, this.arch, this.topology, compiles=False)
            yield Proposal(changes=changes, look=found)


def _settings(this: Look) -> Settings:
    """What may be changed, as it is; 0 spelled out."""
    cfg, the_plan = this.cfg, this.plan
    rows = cfg.data.num_prompts_per_step * cfg.group_drawn * cfg.plan.groups
    return {
        "mesh.fsdp": cfg.mesh.fsdp,
        "mesh.tensor": cfg.mesh.tensor,
        "mesh.expert": cfg.mesh.expert,
        "optim.microbatch_completions": the_plan.completions_per_microbatch,
        "model.remat": cfg.model.remat,
        "rollout.slots": cfg.rollout.slots or rows,
        "rollout.gather_weights": cfg.rollout.gather_weights,
    }


def _microbatches(this: Look) -> list[int]:
    """Completions that a microbatch may have: a part of a group, or groups."""
    group = this.cfg.group_rows
    device = this.plan.microbatches * this.plan.completions_per_microbatch
    return [size for size in _divisors(device) if group % size == 0 or size % group == 0]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _exceeds(this: Look, name: str) -> bool:
    program = next(p for p in this.programs if p.name == name)
    return not program.compiled or program.total > this.topology.chip.hbm


def _sizes(this: Look) -> dict[bool, int]:
    """Bytes of the largest program that samples (False) and that learns (True)."""
    sizes: dict[bool, int] = {}
    for program in this.programs:
        learns = program.name in LEARNING
        sizes[learns] = max(sizes.get(learns, 0), program.total)
    return sizes


def _factors(this: Look) -> dict[bool, float]:
    """How far arithmetic falls short of the compiler."""
    rough = _sizes(look(this.cfg, this.arch, this.topology, compiles=False))
    found = _sizes(this)
    return {phase: max(1.0, found[phase] / rough[phase]) for phase in found if phase in rough}
