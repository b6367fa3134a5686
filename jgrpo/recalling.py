"""Completions out of the store: of each prompt that is asked again, the one of lowest entropy.

Letters: P prompts of a step, R of them asked again, K candidates of each, T tokens.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree
from numpy import ndarray

from jgrpo.config import Config
from jgrpo.learner.step import Learner
from jgrpo.parallel.hosts import fetch
from jgrpo.strategy.replay import Store, candidates
from jgrpo.types import Batch, Prompts


class Recalled(NamedTuple):
    """A completion that an earlier step has drawn.

    Attributes:
      tokens: token ids.
      logps: log-probs (nats) under the policy that drew it.
    """

    tokens: list[int]
    logps: list[float]


def recalled(
    cfg: Config,
    learner: Learner,
    params: PyTree,
    prompts: Prompts,
    ids: Int[ndarray, " R"],
    store: Store,
) -> list[Recalled]:
    """A stored completion of each of the first prompts of a step.

    Args:
      cfg: the run's config.
      learner: computes entropies.
      params: the policy now.
      prompts: of the step.
      ids: numbers in the data of those that a completion comes back for; they stand first.
      store: the store.
    """
    places = candidates(store, ids, cfg.method.replay_candidates)
    best = np.zeros(len(ids), np.int64)
    if (places[:, 1:] >= 0).any():
        best = _entropies(learner, params, prompts, places, store).argmin(axis=1)
    found = []
    for place in places[np.arange(len(ids)), best].tolist():
        n = int(store.lengths[place])
        tokens, logps = np.asarray(store.tokens)[place, :n], np.asarray(store.logp)[place, :n]
        found.append(Recalled(tokens.tolist(), logps.tolist()))
    return found


def _entropies(
    learner: Learner,
    params: PyTree,
    prompts: Prompts,
    places: Int[ndarray, "R K"],
    store: Store,
) -> Float[ndarray, "R K"]:
    """Mean entropy of the policy, in nats, over the tokens of each candidate; inf for none."""
    number = len(prompts.uid)
    at = np.full((number, places.shape[1]), -1, np.int64)
    at[: len(places)] = places
    tokens, then = (np.asarray(x)[np.maximum(at, 0)] for x in (store.tokens, store.logp))
    lengths = np.where(at >= 0, np.asarray(store.lengths)[np.maximum(at, 0)], 0)
    mask = np.arange(tokens.shape[-1]) < lengths[..., None]
    zeros = np.zeros(mask.shape, np.float32)
    batch = Batch(
        prompts=prompts, tokens=tokens, mask=mask, weights=zeros, advantages=zeros, old_logp=then
    )
    facts = fetch(learner.facts_of(params, batch))
    assert facts.entropy is not None
    total = np.where(mask, facts.entropy, 0.0).sum(axis=-1)
    return np.where(lengths > 0, total / np.maximum(lengths, 1), np.inf)[: len(places)]
