"""All slot tables by the name of their slot, and what follows from a method's choices."""

from collections.abc import Mapping
from typing import Any

from jgrpo.algo.allocation import ALLOCATES
from jgrpo.algo.baselines import BASES
from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.combining import COMBINES
from jgrpo.algo.constraints import BONUSES, CONSTRAINTS
from jgrpo.algo.late import LATES
from jgrpo.algo.levels import LEVELS
from jgrpo.algo.penalties import PENALTIES
from jgrpo.algo.posts import POSTS
from jgrpo.algo.row import Constant, Method
from jgrpo.algo.sampling import SAMPLERS
from jgrpo.algo.scales import SCALES
from jgrpo.algo.shaping import SHAPES
from jgrpo.algo.trackers import TRACKERS
from jgrpo.algo.trust import TRUSTS
from jgrpo.algo.vetoes import VETOES
from jgrpo.algo.weights import WEIGHTS


def penalised(m: Method, where: str) -> bool:
    """True if a KL penalty acts there: in the `loss`, the `reward` or the `token_reward`."""
    return m.kl_in == where and m.penalty != "none" and m.kl_coef > 0


def choices(m: Method) -> dict[str, Choice[Any]]:
    """The method's choice in each slot that has a function."""
    return {slot: chosen(table, getattr(m, slot)) for slot, table in TABLES.items()}


def needs(m: Method) -> frozenset[str]:
    """What the caller must supply for the method, besides rewards, masks, logp and old_logp.

    Args:
      m: the method.

    Returns:
      Names of fields of `Side` (lengths come with `max_completion_tokens`), of arguments of
      `policy_loss` (`ref_logp`, `segments`, `behavior_logp`, `entropy`, `constraint_scale`), and:
      `columns` (rewards of [P, G, K]), `state` (of `init_state`), `late` (a pass of
      `late_advantages` before every update), `allocation` (sampling by `allocation`), `solutions`
      (worked reference completions in the data).

    Example:
      >>> from jgrpo.algo import METHODS
      >>> sorted(needs(METHODS["rloo"]))
      ['ref_logp', 'sequence_kl']
    """
    each = choices(m)
    if m.kl_coef == 0:
        del each["penalty"]
    names = {name for choice in each.values() for name in choice.needs}
    if penalised(m, "reward"):
        names.add("sequence_kl")
    if penalised(m, "token_reward"):
        names.add("token_kl")
    if m.source != "policy":
        names.add("solutions")
    return frozenset(names)


def constants(m: Method) -> dict[str, Constant]:
    """The constants that have an effect in this method, in the order of its slots."""
    return {name: getattr(m, name) for choice in choices(m).values() for name in choice.constants}


TABLES: Mapping[str, Mapping[str, Choice[Any]]] = {
    "sampler": SAMPLERS,
    "allocate": ALLOCATES,
    "shape": SHAPES,
    "base": BASES,
    "scale": SCALES,
    "combine": COMBINES,
    "post": POSTS,
    "late": LATES,
    "level": LEVELS,
    "trust": TRUSTS,
    "veto": VETOES,
    "weights": WEIGHTS,
    "penalty": PENALTIES,
    "bonus": BONUSES,
    "constraint": CONSTRAINTS,
    "tracker": TRACKERS,
}
