"""WEIGHTS: aggregation as one weight per token, so that the loss is a plain weighted sum.

Letters: B sequences, T token positions, n_i trained tokens of row i, B+ rows with n_i > 0. Weights
are computed once on the global batch; shards and microbatches then simply add up. Every choice has
the signature `Weights`. No weight depends on the padded width.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method
from jgrpo.types import AnyArray

# (m, mask as 0 and 1, row lengths) -> weights
Weights: TypeAlias = Callable[
    [Method, Float[Array, "B T"], Float[Array, "B 1"]], Float[Array, "B T"]
]


def token_weights(m: Method, mask: Bool[AnyArray, "B T"]) -> Float[Array, "B T"]:
    """The weight of each token in the loss.

    Args:
      m: the method.
      mask: True at trained tokens, for every row of the global batch (of all devices and
        microbatches that make one update).

    Returns:
      Non-negative float32 weights, 0 where the mask is False; all 0 for an empty batch.
    """
    ones = jnp.asarray(mask).astype(jnp.float32)
    return chosen(WEIGHTS, m.weights).function(m, ones, jnp.sum(ones, axis=1, keepdims=True))


def token_mean(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1 / sum of n_i: every token counts the same.

    References:
      DAPO, arXiv:2503.14476. Departs: none.
    """
    return mask / jnp.maximum(jnp.sum(lengths), 1.0)


def sequence_mean(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1 / (n_i B+): every non-empty sequence counts the same.

    References:
      GRPO, arXiv:2402.03300. Departs: empty rows do not count (as in verl; TRL counts them).
    """
    return mask / (jnp.maximum(lengths, 1.0) * _filled(lengths))


def sequence_sum(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1 / B+: the sum over each sequence, meaned over the non-empty ones.

    References:
      RLOO, arXiv:2402.14740. Departs: empty rows do not count.
    """
    return mask / _filled(lengths)


def constant_length(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1 / (B L), L = `constant_length_tokens`; all rows count, empty ones too.

    References:
      Dr. GRPO, arXiv:2503.20783. Departs: none.
    """
    return mask / (mask.shape[0] * m.constant_length_tokens)


def token_sum(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1: a plain sum over tokens, which grows with the batch.

    References:
      verl's `token-sum`. Departs: none.
    """
    return mask


def sequence_mean_all(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1 / (n_i B): every sequence counts the same, empty ones too.

    References:
      TRL's `grpo`. Departs: none.
    """
    return mask / (jnp.maximum(lengths, 1.0) * mask.shape[0])


def sequence_sum_constant(
    m: Method, mask: Float[Array, "B T"], lengths: Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """1 / (B+ L), L = `constant_length_tokens`: as `constant_length`, without the empty rows.

    References:
      verl's `seq-mean-token-sum-norm`. Departs: L is a constant, never the padded width.
    """
    return mask / (_filled(lengths) * m.constant_length_tokens)


def _filled(lengths: Float[Array, "B 1"]) -> Float[Array, ""]:
    return jnp.maximum(jnp.sum((lengths > 0).astype(jnp.float32)), 1.0)


WEIGHTS: Mapping[str, Choice[Weights]] = {
    "token_mean": Choice(
        function=token_mean,
        formula="w_it = m_it / sum_i n_i",
        watch=("completion/length_mean",),
        pitfalls=("Long completions weigh more than short ones.",),
    ),
    "sequence_mean": Choice(
        function=sequence_mean,
        formula="w_it = m_it / (n_i B+), B+ = rows with n_i > 0",
        watch=("completion/length_mean",),
        pitfalls=(
            "Division by n_i punishes a long wrong completion less per token: length may creep up.",
        ),
    ),
    "sequence_sum": Choice(
        function=sequence_sum,
        formula="w_it = m_it / B+, B+ = rows with n_i > 0",
        watch=("grad/norm",),
        pitfalls=("The loss grows with length: tune learning rate or gradient clipping.",),
    ),
    "constant_length": Choice(
        function=constant_length,
        formula="w_it = m_it / (B constant_length_tokens)",
        constants=("constant_length_tokens",),
        watch=("grad/norm",),
        pitfalls=(
            "constant_length_tokens scales the loss: with the default of 3000 and short "
            "completions gradients are tiny, which AdamW hides and a gradient-norm clip does not.",
        ),
    ),
    "token_sum": Choice(
        function=token_sum,
        formula="w_it = m_it",
        watch=("grad/norm",),
        pitfalls=(
            "The loss grows with batch and length: tune learning rate or gradient clipping.",
        ),
    ),
    "sequence_mean_all": Choice(
        function=sequence_mean_all,
        formula="w_it = m_it / (n_i B)",
        watch=("completion/length_mean",),
        pitfalls=("Completions taken out of the batch still shrink the loss.",),
    ),
    "sequence_sum_constant": Choice(
        function=sequence_sum_constant,
        formula="w_it = m_it / (B+ constant_length_tokens)",
        constants=("constant_length_tokens",),
        watch=("grad/norm",),
        pitfalls=("constant_length_tokens scales the loss, and with it the gradient.",),
    ),
}
