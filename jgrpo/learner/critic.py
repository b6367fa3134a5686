"""The critic: a linear read-out of the policy's hidden states, trained beside the policy.

It stands in `TrainState.aux` under `VALUE_HEAD`, apart from the policy's parameters, so that
sampler, export and reference never see it. The optimizer sees both as one tree. Its gradient flows
on into the policy, as in PPO with shared parameters.

Letters: P prompts, G completions per prompt, T completion tokens, D model width, B = P*G.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32, PyTree

from jgrpo import algo
from jgrpo.parallel.rules import replicated
from jgrpo.types import AnyArray, Batch

VALUE_HEAD = "value_head"


def head_shapes(params: Mapping[str, Any]) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
    """Shapes of the head for a policy of these shapes, under its name.

    Args:
      params: shapes of the policy's parameters.
    """
    width = params["final_norm"].shape
    float32 = {"weight": width, "bias": ()}
    return {VALUE_HEAD: {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in float32.items()}}


def head_shardings(params: Mapping[str, Any], mesh: Mesh) -> dict[str, PyTree[NamedSharding]]:
    """Shardings of the head: its width is split as the policy's.

    Args:
      params: shardings of the policy's parameters.
      mesh: the devices.
    """
    return {VALUE_HEAD: {"weight": params["final_norm"], "bias": replicated(mesh)}}


def token_values(
    trained: Mapping[str, Any], hidden: Float[Array, "*B D"]
) -> Float32[Array, "*B"] | None:
    """The predicted return before each token, in reward units; None without a head.

    Args:
      trained: the policy's parameters, and the head under its name.
      hidden: the states from which the tokens are predicted.
    """
    if VALUE_HEAD not in trained:
        return None
    head = trained[VALUE_HEAD]
    # Products in float32: a value is a regression, not a choice among logits.
    return hidden.astype(jnp.float32) @ head["weight"] + head["bias"]


def critic_loss(
    method: algo.Method,
    values: Float32[AnyArray, "P G T"],
    batch: Batch,
    share: Float32[Array, "P G T"],
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """The value term of the loss, its coefficient included, and the critic's metrics.

    Args:
      method: for `value_coef` and `value_clip`.
      values: what the critic predicts now.
      batch: with old values and returns.
      share: weight of each token in the metrics.
    """
    assert batch.old_values is not None
    assert batch.returns is not None
    rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])  # noqa: E731
    loss = method.value_coef * algo.value_loss(
        rows(values),
        old_values=rows(batch.old_values),
        returns=rows(batch.returns),
        weights=rows(batch.weights),
        value_clip=method.value_clip,
    )
    still = jax.lax.stop_gradient(jnp.asarray(values))
    error = jnp.where(batch.mask, jnp.square(still - batch.returns), 0.0)
    return loss, {
        "loss/value": jax.lax.stop_gradient(loss),
        "value/mean": jnp.sum(share * still),
        "value/squared_error": jnp.sum(share * error),
    }
