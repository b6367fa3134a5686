"""The preference model in a run: its loss on completions, its report on held-out prompts, its file.

Letters: P prompts, G completions per prompt, T completion tokens.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, PyTree
from numpy import ndarray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from jgrpo.algo.ending import stops
from jgrpo.algo.preference import bradley_terry, preferred
from jgrpo.config import Config
from jgrpo.learner.batch import unweighted
from jgrpo.learner.preference import PREFERENCE
from jgrpo.learner.step import Learner
from jgrpo.marks import segments
from jgrpo.parallel.hosts import fetch, is_first
from jgrpo.types import AnyArray, Batch, Rollouts, TrainState

FILE = "preference.safetensors"
_BINS = 10
_loss = jax.jit(jax.value_and_grad(bradley_terry))


def compared(
    learner: Learner, state: TrainState, part: Batch
) -> tuple[Batch, dict[str, float | int]]:
    """A minibatch that trains the preference model in place of the policy, and how well it does.

    The loss couples completions, but it is a function of one score each: with its slope at these
    weights as weight of the score, the sum over completions has the gradient of the loss.

    Args:
      learner: computes scores.
      state: the weights.
      part: with advantages, whose signs say what is right and what is wrong.
    """
    scores, last = _final_scores(learner, state, part)
    outcomes = np.sign(np.asarray(part.advantages)[..., 0]).astype(np.int32)
    loss, slope = jax.device_get(_loss(scores, outcomes))
    weights = np.zeros(part.mask.shape, np.float32)
    np.put_along_axis(weights, last, slope[..., None], axis=2)
    pairs = np.asarray(preferred(outcomes))
    right = (scores[:, :, None] > scores[:, None, :]) & pairs
    metrics = {
        "preference/loss": float(loss),
        "preference/accuracy": float(right.sum() / max(pairs.sum(), 1)),
        "preference/pairs": int(pairs.sum()),
    }
    still = np.zeros(part.mask.shape, np.float32)
    return dataclasses.replace(part, advantages=still, score_weights=weights), metrics


def together(parts: list[dict[str, float | int]]) -> dict[str, float | int]:
    """The metrics of a step from those of its minibatches: means over pairs, and their number."""
    pairs = [int(part["preference/pairs"]) for part in parts]
    share = np.array(pairs) / max(sum(pairs), 1)
    mean = lambda name: float(sum(w * p[name] for w, p in zip(share, parts, strict=True)))  # noqa: E731
    return {
        "preference/loss": mean("preference/loss"),
        "preference/accuracy": mean("preference/accuracy"),
        "preference/pairs": sum(pairs),
    }


def whole_scores(
    learner: Learner, state: TrainState, rollouts: Rollouts
) -> Float32[ndarray, "P G"]:
    """The score of each whole completion.

    Args:
      learner: computes scores.
      state: the weights.
      rollouts: completions.
    """
    trained = np.ones(rollouts.mask.shape[:2], bool)
    return _final_scores(learner, state, unweighted(rollouts, trained))[0]


def report(scores: Float[ndarray, "P G"], correct: Bool[ndarray, "P G"]) -> dict[str, Any]:
    """Accuracy and calibration over pairs of completions of one prompt with different outcomes.

    Of each pair the earlier completion is asked about: how likely is it that it is the right one.

    Args:
      scores: of whole completions.
      correct: their outcomes.

    Returns:
      `pairs`, `accuracy` (of the pairs), `brier` (mean squared error of the probability) and
      `calibration_error`: distance of mean probability and frequency, mean over ten equal bins of
      probability by the pairs in them. Without a pair the last three are None.
    """
    first, second = np.triu_indices(correct.shape[1], 1)
    told = correct[:, first] != correct[:, second]
    chance = (1 / (1 + np.exp(scores[:, second] - scores[:, first])))[told]
    true = correct[:, first][told]
    if not true.size:
        return {"pairs": 0, "accuracy": None, "brier": None, "calibration_error": None}
    bins = np.minimum((chance * _BINS).astype(int), _BINS - 1)
    gaps = [abs((chance - true)[bins == b].sum()) for b in range(_BINS)]
    hits = np.where(chance == 0.5, 0.5, (chance > 0.5) == true)
    return {
        "pairs": int(true.size),
        "accuracy": float(hits.mean()),
        "brier": float(np.square(chance - true).mean()),
        "calibration_error": float(sum(gaps) / true.size),
    }


def save_preference(folder: Path, state: TrainState) -> None:
    """Writes the model beside the run's other files, for runs that reward steps by it."""
    if not is_first():
        return
    arrays = {name: np.asarray(x) for name, x in jax.device_get(state.aux[PREFERENCE]).items()}
    partial = folder / (FILE + ".partial")
    save_file(arrays, partial)
    partial.replace(folder / FILE)


def load_preference(folder: str, width: int) -> dict[str, Float32[ndarray, "..."]]:
    """The model that a run of `ws_preference` has left in its folder.

    Args:
      folder: the run folder; `model.preference`.
      width: of the policy that encodes.

    Raises:
      ValueError: if there is none, or it is for a policy of another width.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(
            f"model.preference: {path} does not exist; a run of method ws_preference writes it at "
            "its end (python train.py configs/ws_preference_tiny.yaml)"
        )
    found = load_file(path)
    if found["in_weight"].shape[0] != width:
        raise ValueError(
            f"model.preference: {path} reads states of width {found['in_weight'].shape[0]}, "
            f"the model has {width}"
        )
    return found


def scores_of(
    learner: Learner, encoder: PyTree, state: TrainState, batch: Batch
) -> Float32[ndarray, "P G T"]:
    """The frozen model's score of every beginning.

    Args:
      learner: computes them.
      encoder: weights of the policy that reads the completions.
      state: holds the model.
      batch: the completions.
    """
    weights = encoder | {PREFERENCE: state.aux[PREFERENCE]}
    return np.asarray(fetch(learner.facts_of(weights, batch).scores))


def stops_of(
    cfg: Config,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    weights: PyTree,
    pool: Rollouts,
) -> Int[ndarray, "P N"]:
    """Tokens behind which the frozen model would end each plain completion (`ending.stops`).

    Args:
      cfg: the run's config.
      learner: computes scores.
      tokenizer: of the policy.
      weights: of the policy that reads the completions, and the model under its name.
      pool: completions of the first round, in the first places of a pool.
    """
    places, own = pool.mask.shape[1], slice(cfg.group_drawn)
    mask = np.asarray(pool.mask)[:, own]
    first = Rollouts(
        prompts=pool.prompts,
        tokens=np.asarray(pool.tokens)[:, own],
        mask=mask,
        behavior_logp=np.asarray(pool.behavior_logp)[:, own],
        finished=np.asarray(pool.finished)[:, own],
    )
    batch = unweighted(first, np.asarray(mask.any(axis=-1)))
    scores = np.asarray(fetch(learner.facts_of(weights, batch).scores))
    number = segments(tokenizer, first, cfg.rollout.segment_mark)
    found = np.asarray(stops(cfg.method, scores, number, mask))
    return np.pad(found, [(0, 0), (0, places - found.shape[1])])


def _final_scores(
    learner: Learner, state: TrainState, batch: Batch
) -> tuple[Float32[ndarray, "P G"], Int[ndarray, "P G 1"]]:
    """The score of each whole completion, and the place of its last token; 0 without a token."""
    scores = np.asarray(fetch(learner.facts(state, batch).scores))
    mask: AnyArray = np.asarray(batch.mask)
    last = np.maximum(mask.shape[2] - 1 - np.argmax(mask[..., ::-1], axis=2), 0)[..., None]
    found = np.take_along_axis(scores, last, axis=2)[..., 0]
    return np.where(mask.any(axis=2), found, np.float32(0)), last
