"""POST: what happens to the advantages of a batch after group statistics: rows and whole batches.

Letters: P prompts, G completions per prompt, T token positions, B = P*G. Every choice has the
signature `Post`. Values are 0 at rows where `side.valid` is False. What credits single tokens is in
`token_credit.py`; the table of both is here.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jgrpo.algo.baselines import group_mean, sampled_rows
from jgrpo.algo.choice import Choice
from jgrpo.algo.drawing import known, rarity
from jgrpo.algo.record import Advantages
from jgrpo.algo.row import Method
from jgrpo.algo.scales import group_std
from jgrpo.algo.side import Side, required
from jgrpo.algo.statistics import batch_deviations, count, lower_median
from jgrpo.algo.token_credit import (
    gae_whitened,
    items,
    prefix_td,
    returns_whitened,
    token_whitened,
)

Values: TypeAlias = Float[Array, "P G"] | Float[Array, "P G K"]
# (m, values, shaped rewards, side, state) -> what the learner trains with
Post: TypeAlias = Callable[[Method, Values, Values, Side, PyTree], Advantages]
MAX_REFERENCE_ADVANTAGE = 10.0


def as_they_are(
    m: Method, values: Values, rewards: Values, side: Side, state: PyTree
) -> Advantages:
    """Trains every valid row with its advantage."""
    return Advantages(values=values, keep=_valid(m, side), state=state)


def batch_zscore(
    m: Method, values: Values, rewards: Values, side: Side, state: PyTree
) -> Advantages:
    """Subtracts the mean of the batch's valid rows and divides by their deviation + `post_eps`.

    References:
      GDPO, arXiv:2601.05242; SPO, arXiv:2509.13232. Departs: a batch of one row gets 0.
    """
    valid = _valid(m, side)
    away, variance = batch_deviations(values, valid)
    varied = variance > 0
    width = jnp.where(varied, jnp.sqrt(jnp.where(varied, variance, 1.0)) + m.post_eps, 1.0)
    return Advantages(values=jnp.where(varied, away / width, 0.0), keep=valid, state=state)


def blend_group(
    m: Method, values: Values, rewards: Values, side: Side, state: PyTree
) -> Advantages:
    """Mixes the stratum's advantage with the z-score over the whole group.

    References:
      Stratified GRPO, arXiv:2510.06214. Departs: the blend is not published.
    """
    whole = group_std(m, group_mean(m, rewards, side, state), rewards, side, state)
    mixed = m.stratum_blend * values + (1.0 - m.stratum_blend) * whole
    return Advantages(values=mixed, keep=_valid(m, side), state=state)


def drop_pivot(m: Method, values: Values, rewards: Values, side: Side, state: PyTree) -> Advantages:
    """Takes the median completion, whose advantage is 0, out of training: G of G + 1 rows train.

    References:
      MC-GRPO, arXiv:2601.22582. Departs: of equal medians the first row is dropped (there it is
      left to the implementation of the median).
    """
    keep = _valid(m, side) & ~_pivot(m, rewards, side)
    return Advantages(values=jnp.where(keep, values, 0.0), keep=keep, state=state)


def drop_pivot_rescaled(
    m: Method, values: Values, rewards: Values, side: Side, state: PyTree
) -> Advantages:
    """As `drop_pivot`; before it, advantages other than 0 grow by rows / rows that have one.

    References:
      The gsm trainer of MC-GRPO, arXiv:2601.22582. Departs: none.
    """
    valid = _valid(m, side)
    active = count(jnp.abs(values) > 1e-6)
    grown = values * jnp.where(active > 0, count(valid) / jnp.maximum(active, 1.0), 1.0)
    return drop_pivot(m, grown, rewards, side, state)


def novelty(m: Method, values: Values, rewards: Values, side: Side, state: PyTree) -> Advantages:
    """Adds to a correct completion's advantage the more, the less likely it was.

    A_i + min(max(novelty_coef (1 - eta_i), 0), novelty_clip A_i), eta_i = exp(s_i - mean_j s_j).
    Rows of advantage 0 or less, and wrong ones where `side.correct` says so, stay.

    References:
      XRPO, arXiv:2510.06672. Departs: the mean is taken over the whole group (assumed).
    """
    valid = _valid(m, side)
    score = jnp.asarray(required(side.mean_logp, "mean_logp", m)).astype(jnp.float32)
    score = jnp.where(valid, score, 0.0)
    mean = jnp.sum(score, axis=1, keepdims=True) / jnp.maximum(count(valid), 1.0)
    eta = jnp.exp(jnp.minimum(score - mean, 20.0))
    bonus = jnp.minimum(jnp.maximum(m.novelty_coef * (1.0 - eta), 0.0), m.novelty_clip * values)
    raised = valid & (values > 0)
    if side.correct is not None:
        raised = raised & jnp.asarray(side.correct)
    return Advantages(values=jnp.where(raised, values + bonus, values), keep=valid, state=state)


def anchor(m: Method, values: Values, rewards: Values, side: Side, state: PyTree) -> Advantages:
    """Gives reference rows `anchor_factor` times the largest advantage of the sampled ones.

    References:
      TempSamp-R1, arXiv:2509.18056, the anchored variant. Departs: none.
    """
    valid = _valid(m, side)
    sampled = sampled_rows(m, side)
    best = jnp.max(jnp.where(sampled, values, -jnp.inf), axis=1, keepdims=True)
    best = jnp.where(jnp.isfinite(best), best, 0.0)
    anchored = jnp.where(sampled, values, jnp.where(valid, m.anchor_factor * best, 0.0))
    return Advantages(values=anchored, keep=valid, state=state)


def imitate(m: Method, values: Values, rewards: Values, side: Side, state: PyTree) -> Advantages:
    """Weighs exploration and imitation: (1 + alignment_coef) A_i and imitation_coef A_y.

    The mean over the group's sampled rows becomes one over all N rows of it: factor N / G for
    sampled rows, N for the one reference row. With `sequence_mean` weights that is the paper's.

    References:
      GRAO, arXiv:2508.07750. Departs: the alignment term is contracted (its imitation half sums to
      zero); the reference row's advantage is bounded to +-10, which matters where samples tie.
    """
    valid = _valid(m, side)
    sampled = sampled_rows(m, side)
    number, drawn = count(valid), jnp.maximum(count(sampled), 1.0)
    explored = (1.0 + m.alignment_coef) * values * number / drawn
    bounded = jnp.clip(values, -MAX_REFERENCE_ADVANTAGE, MAX_REFERENCE_ADVANTAGE)
    mixed = jnp.where(sampled, explored, m.imitation_coef * bounded * number)
    return Advantages(values=jnp.where(valid, mixed, 0.0), keep=valid, state=state)


def rare_events(
    m: Method, values: Float[Array, "P G"], rewards: Values, side: Side, state: PyTree
) -> Advantages:
    """Weighs prompts that are seldom solved, or seldom missed, `rare_weight` times as much.

    After the group statistics: before them a factor on the rewards of a group has no effect.

    References:
      arXiv:2602.03452. Departs: where the weight acts, and its size, is assumed.
    """
    ids = jnp.asarray(required(side.prompt_ids, "prompt_ids", m))
    rare = rarity(m, *known(m, state, ids)) != 0
    weighted = values * jnp.where(rare, m.rare_weight, 1.0)[:, None]
    return Advantages(values=weighted, keep=_valid(m, side), state=state)


def _valid(m: Method, side: Side) -> Bool[Array, "P G"]:
    return jnp.asarray(required(side.valid, "valid", m))


def _pivot(m: Method, rewards: Values, side: Side) -> Bool[Array, "P G"]:
    """True at the first valid row whose reward is the lower median."""
    valid = _valid(m, side)
    hit = valid & (rewards == lower_median(rewards, valid))
    return hit & (jnp.cumsum(hit, axis=1) == 1)


POSTS: Mapping[str, Choice[Post]] = {
    "none": Choice(function=as_they_are, formula="A kept as it is"),
    "batch_zscore": Choice(
        function=batch_zscore,
        formula="A_i <- (A_i - mean A) / (std A + post_eps), over the batch",
        constants=("post_eps",),
        watch=("advantage/abs_mean",),
        pitfalls=("A batch of one completion teaches nothing.",),
    ),
    "token_whiten": Choice(
        function=token_whitened,
        formula="A_it <- (A_i - mean A) / sqrt(var A + post_eps), over the tokens of the batch",
        constants=("post_eps",),
        needs=("mask",),
        watch=("advantage/abs_mean",),
        pitfalls=("Long completions weigh more in mean and variance.",),
    ),
    "returns": Choice(
        function=returns_whitened,
        formula="A_it = whitened sum_{s >= t} gamma^(s - t) r_is, r = A_i at the last token, less"
        " kl_coef (old - ref) at each with kl_in token_reward",
        constants=("post_eps", "gamma"),
        needs=("mask",),
        watch=("advantage/abs_mean",),
        pitfalls=("The batch's mean is the only baseline: mix easy and hard prompts.",),
    ),
    "gae": Choice(
        function=gae_whitened,
        formula="A_it = whitened sum_k (gamma gae_lambda)^k delta_{t+k},"
        " delta_t = r_t + gamma V_{t+1} - V_t; r as in returns; loss + value_coef sum_it w_it"
        " max((V - V*)^2, (clip(V, V0 +- value_clip) - V*)^2) / 2, V0 = V of the old weights,"
        " V* = V0 + A before it is whitened",
        constants=("post_eps", "gamma", "gae_lambda", "value_coef", "value_clip"),
        needs=("mask", "values"),
        watch=("advantage/abs_mean", "value/explained_variance", "loss/value"),
        pitfalls=(
            "Until value/explained_variance is above 0 the critic only adds noise.",
            "In a loop of your own the critic must be trained too: algo.value_loss.",
        ),
    ),
    "blend_group": Choice(
        function=blend_group,
        formula="A_i <- b A_i + (1 - b) (R'_i - mean_j R'_j) / (std_j R'_j + scale_eps),"
        " b = stratum_blend",
        constants=("stratum_blend", "scale_eps", "scale_ddof"),
        watch=("advantage/abs_mean",),
    ),
    "drop_pivot": Choice(
        function=drop_pivot,
        formula="the row of median reward is not trained",
        needs=("pivot",),
        watch=("advantage/abs_mean",),
        pitfalls=("In a loop of your own sample one completion more than you want to train.",),
    ),
    "drop_pivot_rescaled": Choice(
        function=drop_pivot_rescaled,
        formula="A_i <- A_i rows / (rows with A != 0); the row of median reward is not trained",
        needs=("pivot",),
        watch=("advantage/abs_mean",),
        pitfalls=("In a loop of your own sample one completion more than you want to train.",),
    ),
    "novelty": Choice(
        function=novelty,
        formula="A_i <- A_i + min(max(novelty_coef (1 - eta_i), 0), novelty_clip A_i) where A_i > 0"
        " and i is correct; eta_i = exp(s_i - mean_j s_j), s = mean log-prob",
        constants=("novelty_coef", "novelty_clip"),
        needs=("mean_logp",),
        watch=("entropy/mean", "advantage/abs_mean"),
    ),
    "anchor": Choice(
        function=anchor,
        formula="A of a reference row <- anchor_factor max_j A_j over the sampled j",
        constants=("anchor_factor",),
        needs=("reference",),
        watch=("advantage/abs_mean",),
    ),
    "imitate": Choice(
        function=imitate,
        formula="A_i <- (1 + alignment_coef) A_i N / G, reference row:"
        " imitation_coef clip(A_y, -10, 10) N; N = all rows, G = sampled ones",
        constants=("imitation_coef", "alignment_coef"),
        needs=("reference",),
        watch=("advantage/abs_mean",),
        pitfalls=("The factors are those of sequence_mean weights and one reference row a group.",),
    ),
    "prefix_td": Choice(
        function=prefix_td,
        formula="A_it = A_i + (V(s_{t+1}) - V(s_t)) over the scale of A, V(s) = mean R' of the"
        " group's completions that begin with s",
        needs=("mask", "tokens"),
        watch=("advantage/abs_mean",),
        pitfalls=("Takes G^2 T memory per prompt.",),
    ),
    "items": Choice(
        function=items,
        formula="A_it = A_ik of the item k that token t belongs to; 0 beyond the last item",
        needs=("mask", "segments"),
        watch=("advantage/abs_mean",),
        pitfalls=("A separator belongs to the item before it.",),
    ),
    "rare_events": Choice(
        function=rare_events,
        formula="A_i <- rare_weight A_i for prompts whose tracked p, or 1 - p, is in [rare_low,"
        " rare_high]",
        constants=("rare_weight", "rare_low", "rare_high", "min_value", "max_value"),
        needs=("prompt_ids", "state"),
        watch=("advantage/abs_mean", "draw/paired_fraction"),
    ),
}
