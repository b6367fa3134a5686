"""Who is asked, and what is trained in the place of groups that teach nothing: rules meet records.

Letters: P prompts of a step, C candidates, G completions of a prompt.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from numpy import ndarray

from jgrpo import algo
from jgrpo.config import Config
from jgrpo.keys import named_key, root_key, sequence_keys
from jgrpo.types import AnyArray, Batch


def is_drawn(cfg: Config) -> bool:
    """True if prompts are drawn by what the last step has shown."""
    return cfg.method.draw != "order" or cfg.method.replay != "none"


def places_looked_at(cfg: Config) -> int:
    """Places of the run's order among which a step draws; 0: all prompts of the data."""
    return cfg.method.draw_candidates * cfg.data.num_prompts_per_step


def drawn_ids(
    cfg: Config, strategy: Mapping[str, PyTree], candidates: Int[ndarray, " C"], cursor: int
) -> Int[ndarray, " P"]:
    """The prompts of a step, drawn from candidates.

    Args:
      cfg: the run's config; its seed and the cursor name the draw.
      strategy: the states of the method's slots.
      candidates: numbers of prompts; one that stands there twice counts once.
      cursor: prompts taken so far from the run's order.

    Raises:
      ValueError: if there are fewer different candidates than prompts in a step.
    """
    first = np.sort(np.unique(candidates, return_index=True)[1])
    different, count = candidates[first], cfg.data.num_prompts_per_step
    key = named_key(root_key(cfg.run.seed), "draw", cursor)
    return different[np.asarray(algo.draw(cfg.method, strategy["tracker"], different, key, count))]


def draw_metrics(
    method: algo.Method, strategy: Mapping[str, PyTree], ids: Int[ndarray, " P"]
) -> dict[str, float]:
    """What was known of the prompts of a step when they were drawn; empty if they were not."""
    if method.draw == "order":
        return {}
    rates, seen = (np.asarray(x) for x in algo.known(method, strategy["tracker"], ids))
    found = {
        "draw/success_mean": float(rates[seen].mean()) if seen.any() else 0.0,
        "draw/asked_before_fraction": float(seen.mean()),
    }
    if method.draw == "pairs":
        kinds = np.asarray(algo.rarity(method, rates, seen))
        pairs = min((kinds == 1).sum(), (kinds == -1).sum())
        found["draw/paired_fraction"] = float(2 * pairs / len(kinds))
    return found


def refilled(
    method: algo.Method,
    batch: Batch,
    rewards: Float[AnyArray, "P G"],
    valid: Bool[AnyArray, "P G"],
    key: Key[Array, ""],
) -> tuple[Batch, dict[str, float]]:
    """What is trained of a step, with copies in the place of groups that the method replaces.

    Args:
      method: the method.
      batch: all completions of the step, with their advantages.
      rewards: their rewards.
      valid: rows that count.
      key: names the draw.

    Returns:
      The batch to train on, of the same shapes, and the metrics of the slot.
    """
    if method.refill == "none":
        return batch, {}
    group, weight = (np.asarray(x) for x in algo.refill(method, rewards, valid, key))
    trained = jax.tree.map(lambda x: np.asarray(x)[group], batch)
    advantages = np.asarray(trained.advantages) * weight[:, None, None]
    copies = np.bincount(group, minlength=len(group))
    return dataclasses.replace(trained, advantages=advantages), {
        "refill/replaced_fraction": float((group != np.arange(len(group))).mean()),
        "refill/copies_max": float(copies.max()),
    }


def chances(
    key: Key[Array, ""], uid: Int[AnyArray, " P"], group_size: int
) -> Float[ndarray, "P G"]:
    """A uniform draw for each completion, named by its prompt and its place in the group.

    Args:
      key: of the step.
      uid: numbers of the prompts in the run's order.
      group_size: completions per prompt.
    """
    return np.asarray(jax.vmap(jax.vmap(jax.random.uniform))(sequence_keys(key, uid, group_size)))


def spared(
    method: algo.Method, valid: Bool[AnyArray, "P G"], keep: Bool[AnyArray, "P G"]
) -> dict[str, float]:
    """How many completions count in their groups and are not trained; empty without a row mask."""
    if method.row_mask == "none":
        return {}
    counted = np.asarray(valid)
    share = (counted & ~np.asarray(keep)).sum() / max(int(counted.sum()), 1)
    return {"completion/spared_fraction": float(share)}
