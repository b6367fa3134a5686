"""SHAPE for consistency: a bonus for right answers that a slow copy of the policy finds likely."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required

_RIGHT = 0.1
_CAP = 0.95


def care(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Adds care_coef R to right completions whose answer is as likely as that of others.

    c = min(exp(mean log-prob of the answer), 0.95). Right is a reward above 0.1 and not below the
    group's mean. The bonus goes to right ones with c >= mean c of the right ones - care_margin.

    References:
      GRPO-CARE, arXiv:2506.16141, `grpo_trainer_ref_ema.py`. Departs: none.
    """
    valid = required(side.valid, "valid", m)
    number = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(valid, rewards, 0.0), axis=1, keepdims=True) / number
    right = valid & (rewards > _RIGHT) & (rewards >= mean)
    logp = jnp.where(valid, jnp.asarray(required(side.answer_logp, "answer_logp", m)), 0.0)
    likely = jnp.minimum(jnp.exp(logp.astype(jnp.float32)), _CAP)
    of_right = jnp.sum(jnp.where(right, likely, 0.0), axis=1, keepdims=True)
    bound = of_right / jnp.maximum(jnp.sum(right, axis=1, keepdims=True), 1) - m.care_margin
    return rewards + jnp.where(right & (likely >= bound), m.care_coef * rewards, 0.0)


CARE: Mapping[str, Choice] = {
    "care": Choice(
        function=care,
        formula="R' = R + care_coef R [R > 0.1, R >= mean R, c >= mean c of such - care_margin],"
        " c = min(exp(mean lp of the answer under the reference), 0.95); the reference is"
        " theta + ref_decay (ref - theta) every ref_every_steps",
        constants=("care_coef", "care_margin", "ref_decay", "ref_every_steps"),
        needs=("answer_logp", "moving_reference"),
        watch=("kl/ref", "reward/mean"),
        pitfalls=("The answer is the last segment of a completion: set rollout.segment_mark.",),
    ),
}
