"""All slot tables by the name of their slot, and what follows from a method's choices."""

from collections.abc import Mapping
from typing import Any

from jgrpo.algo.advantages import BASES, POSTS, SCALES
from jgrpo.algo.choice import Choice
from jgrpo.algo.levels import LEVELS
from jgrpo.algo.methods import Constant, Method
from jgrpo.algo.penalties import PENALTIES
from jgrpo.algo.sampling import SAMPLERS
from jgrpo.algo.shaping import SHAPES
from jgrpo.algo.trust import TRUSTS
from jgrpo.algo.weights import WEIGHTS


def penalised(m: Method, where: str) -> bool:
    """True if a KL penalty acts there: in the `loss` or in the `reward`."""
    return m.kl_in == where and m.penalty != "none" and m.kl_coef > 0


def choices(m: Method) -> dict[str, Choice[Any]]:
    """The method's choice in each slot that has a function."""
    return {slot: table[getattr(m, slot)] for slot, table in TABLES.items()}


def needs(m: Method) -> frozenset[str]:
    """What the caller must supply for the method, besides rewards, masks, logp and old_logp.

    Args:
      m: the method.

    Returns:
      Any of: `ref_logp` (log-probs of the completions under a reference policy), `sequence_kl` and
      `lengths` (fields of `Side`; lengths come with `max_completion_tokens`), `solutions` (worked
      reference completions in the data).

    Example:
      >>> from jgrpo.algo import METHODS
      >>> sorted(needs(METHODS["rloo"]))
      ['ref_logp', 'sequence_kl']
    """
    chosen = choices(m)
    if m.kl_coef == 0:
        del chosen["penalty"]
    names = {name for choice in chosen.values() for name in choice.needs}
    if penalised(m, "reward"):
        names.add("sequence_kl")
    if m.source == "reference":
        names.add("solutions")
    return frozenset(names)


def constants(m: Method) -> dict[str, Constant]:
    """The constants that have an effect in this method, in the order of its slots."""
    return {name: getattr(m, name) for choice in choices(m).values() for name in choice.constants}


TABLES: Mapping[str, Mapping[str, Choice[Any]]] = {
    "sampler": SAMPLERS,
    "shape": SHAPES,
    "base": BASES,
    "scale": SCALES,
    "post": POSTS,
    "level": LEVELS,
    "trust": TRUSTS,
    "weights": WEIGHTS,
    "penalty": PENALTIES,
}
