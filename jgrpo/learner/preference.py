"""The preference model's read-out: a small network over the mean of the policy's hidden states.

Its gradient stops at the hidden states: the policy that encodes is not moved by it.

Letters: P prompts, G completions per prompt, T completion tokens, D model width, U units.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32, Key, PyTree

from jgrpo.parallel.rules import replicated

PREFERENCE = "preference"
UNITS = 512


def preference_shapes(params: Mapping[str, Any]) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
    """Shapes of the read-out for a policy of these shapes, under its name.

    Args:
      params: shapes of the policy's parameters.
    """
    (width,) = params["final_norm"].shape
    shapes = {"in_weight": (width, UNITS), "in_bias": (UNITS,), "out_weight": (UNITS,)}
    return {PREFERENCE: {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}}


def preference_shardings(mesh: Mesh) -> dict[str, PyTree[NamedSharding]]:
    """Shardings of the read-out: every device holds it whole.

    Args:
      mesh: the devices.
    """
    return {PREFERENCE: dict.fromkeys(("in_weight", "in_bias", "out_weight"), replicated(mesh))}


def fresh_preference(width: int, key: Key[Array, ""]) -> dict[str, Float32[Array, "..."]]:
    """A read-out that prefers nothing: random first weights, and 0 behind them."""
    drawn = jax.random.normal(key, (width, UNITS), jnp.float32) / jnp.sqrt(jnp.float32(width))
    zeros = lambda: jnp.zeros(UNITS, jnp.float32)  # noqa: E731 (buffers of their own: donated)
    return {"in_weight": drawn, "in_bias": zeros(), "out_weight": zeros()}


def prefix_scores(
    trained: Mapping[str, Any], hidden: Float[Array, "P G T D"]
) -> Float32[Array, "P G T"] | None:
    """The score of the prompt and the tokens before each token; None without a read-out.

    Args:
      trained: the policy's parameters, and the read-out under its name.
      hidden: the states from which the tokens are predicted, the prompt's last one first.
    """
    if PREFERENCE not in trained:
        return None
    head = trained[PREFERENCE]
    states = jax.lax.stop_gradient(hidden).astype(jnp.float32)
    counts = jnp.arange(1, states.shape[2] + 1, dtype=jnp.float32)
    mean = jnp.cumsum(states, axis=2) / counts[None, None, :, None]
    inner = jax.nn.relu(mean @ head["in_weight"] + head["in_bias"][None, None, None])
    return inner @ head["out_weight"]
