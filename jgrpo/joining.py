"""Several rollouts become one: solutions beside samples, prompts behind prompts, round over round.

Letters: P prompts, G completions per prompt.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy import ndarray

from jgrpo.types import AnyArray, Contexts, Rollouts, Standing


def beside(sampled: Rollouts, solutions: Rollouts) -> Rollouts:
    """Puts the solution of each prompt behind its samples, as a further row of the group."""
    wide = _of_one_width([sampled, solutions])
    rows = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *map(_rows, wide))
    return Rollouts(prompts=sampled.prompts, **rows)


def behind(parts: Sequence[Rollouts]) -> Rollouts:
    """Puts the groups of several rounds behind each other."""
    prompt_width = max(part.prompts.tokens.shape[-1] for part in parts)
    wide = [
        dataclasses.replace(
            part,
            prompts=dataclasses.replace(
                part.prompts,
                tokens=_left(part.prompts.tokens, prompt_width),
                mask=_left(part.prompts.mask, prompt_width),
            ),
            standing=standing,
        )
        for part, standing in zip(_of_one_width(parts), _alike(parts), strict=True)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *wide)


def _left(x: AnyArray, width: int) -> ndarray:
    """The array padded on the left of its last dim."""
    return np.pad(np.asarray(x), [(0, 0)] * (x.ndim - 1) + [(width - x.shape[-1], 0)])


def _alike(parts: Sequence[Rollouts]) -> list[Standing | None]:
    """What is said of the standing of completions, with contexts of one width or none at all."""
    found = [part.standing for part in parts]
    given = [s.contexts for s in found if s is not None and s.contexts is not None]
    if not given:
        return found
    width = max(contexts.tokens.shape[-1] for contexts in given)
    number = max(contexts.tokens.shape[1] for contexts in given)

    def whole(standing: Standing) -> Standing:
        own = standing.contexts
        if own is None:
            shape = (len(standing.round), 1, width)
            nobody = np.zeros(np.shape(standing.round), np.int64)
            mask = np.zeros(shape, bool)
            own = Contexts(
                tokens=np.zeros(shape, np.int32), mask=mask, asked=nobody, trained=nobody
            )
        more = [(0, 0), (0, number - own.tokens.shape[1]), (0, 0)]
        tokens, mask = (np.pad(_left(x, width), more) for x in (own.tokens, own.mask))
        return dataclasses.replace(
            standing, contexts=dataclasses.replace(own, tokens=tokens, mask=mask)
        )

    return [None if standing is None else whole(standing) for standing in found]


def over(parts: Sequence[Rollouts]) -> Rollouts:
    """Lays rollouts of the same places over each other; the last that fills a place counts."""
    wide = [_rows(part) for part in _of_one_width(parts)]
    joined: dict[str, Any] = {name: x.copy() for name, x in wide[0].items()}
    for part in wide[1:]:
        filled = part["mask"].any(-1)
        for name, x in part.items():
            joined[name][filled] = x[filled]
    return Rollouts(prompts=parts[0].prompts, **joined)


def _of_one_width(parts: Sequence[Rollouts]) -> list[Rollouts]:
    """The rollouts with as many positions each; all say what is injected if one of them does."""
    width = max(part.tokens.shape[-1] for part in parts)
    marks = any(part.injected is not None for part in parts)
    right = lambda x: np.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])])  # noqa: E731
    wide = []
    for part in parts:
        injected = part.injected
        if marks and injected is None:
            injected = np.zeros(part.mask.shape, bool)
        wide.append(
            dataclasses.replace(
                part,
                tokens=right(part.tokens),
                mask=right(part.mask),
                behavior_logp=right(part.behavior_logp),
                injected=None if injected is None else right(injected),
            )
        )
    return wide


def _rows(rollouts: Rollouts) -> dict[str, ndarray]:
    """What a record holds of completions, without their prompts."""
    names = ("tokens", "mask", "behavior_logp", "finished", "injected")
    found = {name: getattr(rollouts, name) for name in names}
    return {name: np.asarray(x) for name, x in found.items() if x is not None}
