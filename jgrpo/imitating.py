"""Predictions of the policy that are put right and imitated (MASA): chosen, kept, trained.

Letters: P groups of a minibatch, G places of a group, T tokens, E predictions that are trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import GetAttrKey
from jaxtyping import PyTree
from numpy import ndarray

from jgrpo.algo import Round, Want
from jgrpo.collected import Collected
from jgrpo.config import Config
from jgrpo.contexts import Words
from jgrpo.data.draws import Source
from jgrpo.models.load import LoadedModel
from jgrpo.predicting import COLUMNS
from jgrpo.rewards.predictions import corrected
from jgrpo.strategy import experts
from jgrpo.types import Batch

_NAME = "experts"


def due(
    cfg: Config, model: LoadedModel, source: Source, strategy: Mapping[str, PyTree]
) -> list[tuple[list[int], ndarray]]:
    """The predictions that are trained in this step: of each, its prompt's tokens and its own.

    Args:
      cfg: the run's config.
      model: for tokenizer and token ids.
      source: the training data.
      strategy: the states of the method's slots, before the step.
    """
    if _NAME not in strategy:
        return []
    waiting = jax.device_get(strategy[_NAME])
    found = experts.first(waiting, experts.batch_of(waiting))
    if not found:
        return []
    examples = [source[owner] for owner, _ in found]
    words = Words(cfg=cfg, model=model, examples=examples, of=f"method {cfg.method.name!r}")
    wants = [Want(p, 0, 1, context="predict", of=1) for p in range(len(found))]
    contexts = words.asks(Round("experts", wants), None).contexts
    return [(list(c or ()), tokens) for c, (_, tokens) in zip(contexts, found, strict=True)]


def beside(part: Batch, trained: Sequence[tuple[list[int], ndarray]], weight: float) -> Batch:
    """A minibatch with predictions that are trained by their likelihood, in groups of their own.

    The loss gains -weight * mean over predictions of the mean log-prob of their tokens, whatever
    the minibatch weighs. Empty groups fill up to a multiple of the minibatch's, so that it divides
    over devices and microbatches as before.

    Args:
      part: weighed, with advantages.
      trained: prompt and completion of each prediction, in tokens; none: the minibatch stays.
      weight: of the term.
    """
    if not trained:
        return part
    groups = len(part.mask)
    more = -(-len(trained) // groups) * groups
    prompt_width = max(part.prompts.tokens.shape[1], *(len(prompt) for prompt, _ in trained))
    width = max(part.mask.shape[2], *(len(tokens) for _, tokens in trained))

    def wide(path: Sequence[Any], x: ndarray) -> ndarray:
        """The array with room for the predictions: behind its groups, and in width."""
        x, sides = np.asarray(x), [(0, 0)] * (np.ndim(x) - 1)
        if GetAttrKey("prompts") in path:
            sides = [(prompt_width - x.shape[1], 0)] if sides else []
        elif GetAttrKey("contexts") not in path and x.ndim == 3:
            sides = [(0, 0), (0, width - x.shape[2])]
        return np.pad(x, [(0, more), *sides])

    whole: Batch = jax.tree_util.tree_map_with_path(wide, part)
    assert whole.unit_ratio is not None
    for row, (prompt, tokens) in enumerate(trained, start=groups):
        n, begin = len(tokens), prompt_width - len(prompt)
        at = (row, 0, slice(0, n))
        whole.prompts.tokens[row, begin:], whole.prompts.mask[row, begin:] = prompt, True
        whole.tokens[at], whole.mask[at], whole.unit_ratio[at] = tokens, True, True
        whole.advantages[at], whole.weights[at] = weight, 1 / (n * len(trained))
        if whole.entropy_mask is not None:
            whole.entropy_mask[at] = True
    return whole


def collected_experts(
    cfg: Config,
    model: LoadedModel,
    collected: Collected,
    strategy: Mapping[str, PyTree],
    trained: int,
) -> tuple[dict[str, PyTree], dict[str, float | int]]:
    """The state of the buffer after a step, and its metrics; both empty without one.

    Of each prompt's predictions the first with the best score for its notions comes, if this is at
    least `expert_notion`, with the pass rate and the mean length of right solutions that were found
    in the place of what it says. One that is then too long for a completion is left out.

    Args:
      cfg: the run's config.
      model: for tokenizer and token ids.
      collected: the step, solutions and predictions in groups of their own (`predicting`).
      strategy: the states of the method's slots, before the step.
      trained: predictions trained in it.

    References:
      MASA, arXiv:2510.03259; akatigre/MASA-RL `masa_ray_trainer.py`. Departs: lengths are divided
      by the number of right solutions (the release: by all).
    """
    if _NAME not in strategy:
        return {}, {}
    shape = collected.rollouts.mask.shape[:2]
    lengths = np.asarray(collected.rollouts.mask).sum(-1)
    scores = collected.scores.columns[:, collected.scores.names.index(COLUMNS[-1])].reshape(shape)
    scores = np.where(collected.valid, np.nan_to_num(scores), 0.0)
    owners, rows = list[int](), list[list[int]]()
    for group in range(1, shape[0], 2):
        right, best = collected.correct[group - 1], int(scores[group].argmax())
        if not right.any() or scores[group, best] < cfg.method.expert_notion:
            continue
        rate = float(right.sum() / collected.present[group - 1].sum())
        length = float(lengths[group - 1][right].mean())
        text = corrected(collected.texts[group][best], rate, length)
        tokens = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.eos_ids[0]]
        if len(tokens) <= cfg.rollout.max_completion_tokens:
            owners.append(int(collected.prompt_ids[group]))
            rows.append(tokens)
    kept = experts.after(jax.device_get(strategy[_NAME]), trained, owners, rows)
    return {_NAME: kept}, {"expert/stored": int(kept.count), "expert/trained": trained}
