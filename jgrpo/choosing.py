"""Which skill the policy likes best for each prompt: by its own log-probs of their texts.

Letters: P prompts, C skills of the cache, T tokens.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from jgrpo.algo.skills import arise_select
from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.learner.step import Learner
from jgrpo.places import logps_in_rows
from jgrpo.strategy.skills import Chosen, Shelf, library_of
from jgrpo.types import Batch, Prompts

SCORED_TOKENS = 128
"""Tokens of a skill, its first ones, that its score is a mean over."""


def chosen_skills(
    cfg: Config,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    params: PyTree,
    prompts: Prompts,
    shelf: Shelf,
    step: int,
    key: Key[Array, ""],
) -> list[Chosen]:
    """The skill that each prompt is asked under.

    Args:
      cfg: the run's config.
      learner: computes log-probs, at temperature 1.
      tokenizer: of the model.
      params: the policy.
      prompts: of the step.
      shelf: the library, on the host.
      step: number of the step, from 0.
      key: names the noise of exploring, with the numbers of the prompts.
    """
    method = cfg.method
    cache = library_of(method, shelf).cache
    if not cache or step < method.skill_start_steps:
        return [Chosen()] * len(prompts.uid)
    best_first = sorted(range(len(cache)), key=lambda i: -cache[i].utility)
    texts = [cache[i].text for i in best_first]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    scores = skill_scores(learner, cfg.group_rows, params, prompts, ids)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.asarray(prompts.uid))
    noise = np.asarray(jax.vmap(lambda one: jax.random.uniform(one, (2,)))(keys), np.float64)
    return [
        Chosen() if at < 0 else Chosen(best_first[at] + 1, texts[at])
        for at in arise_select(method, scores, noise).tolist()
    ]


def skill_scores(
    learner: Learner,
    width: int,
    params: PyTree,
    prompts: Prompts,
    skills: Sequence[Sequence[int]],
) -> Float[ndarray, "P C"]:
    """Log-prob of each skill behind each prompt, mean over its tokens, in nats.

    Args:
      learner: computes it.
      width: places of a row of the learner.
      params: the policy.
      prompts: of the step.
      skills: token ids of each, at least one.
    """
    cut = [list(ids[:SCORED_TOKENS]) for ids in skills]
    tokens = np.zeros((len(cut), bucket(max(map(len, cut)))), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for at, ids in enumerate(cut):
        tokens[at, : len(ids)], mask[at, : len(ids)] = ids, True
    shape = (len(prompts.uid), *tokens.shape)
    zeros = np.zeros(shape, np.float32)
    batch = Batch(
        prompts=prompts,
        tokens=np.broadcast_to(tokens, shape),
        mask=np.broadcast_to(mask, shape),
        weights=zeros,
        advantages=zeros,
        old_logp=zeros,
    )
    found = logps_in_rows(learner, params, batch, width).astype(np.float64)
    return np.where(mask, found, 0.0).sum(axis=2) / mask.sum(axis=1)
