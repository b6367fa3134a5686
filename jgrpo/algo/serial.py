"""SHAPE for serial groups: completions that leave one path at later and later places."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required


def serial(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Halves the reward with every correct exit before: 2^-(N - 1) if correct, else 0.

    N is the number of correct completions up to and including this one, in the order of the group.
    Correct is a reward of at least `max_value`.

    References:
      S-GRPO, arXiv:2505.07686. Departs: none.
    """
    correct = (rewards >= m.max_value) & required(side.valid, "valid", m)
    number = jnp.cumsum(correct, axis=1)
    return jnp.where(correct, 2.0 ** (1.0 - number), 0.0)


SERIAL: Mapping[str, Choice] = {
    "serial": Choice(
        function=serial,
        formula="R'_i = 2^-(N_i - 1) if R_i >= max_value else 0, N_i = number of j <= i with"
        " R_j >= max_value",
        constants=("max_value",),
        pitfalls=("The order of a group's completions matters: it is that of their exits.",),
    ),
}
