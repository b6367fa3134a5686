"""What routers of experts add to the loss, and routes that are taken again.

Letters: P prompts, G completions per prompt, T completion tokens, Lp prompt tokens, L layers,
k experts of a token, X experts.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PyTree, UInt
from numpy import ndarray

from jgrpo.learner.forward import Forward
from jgrpo.learner.microbatch import Metrics
from jgrpo.models.architecture import Architecture
from jgrpo.models.moe import Terms, number_dtype
from jgrpo.types import AnyArray, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterLoss:
    """What routers add to the loss, and whose experts they take.

    Attributes:
      balance: coefficient of the load-balancing loss.
      z: coefficient of the squared log-sum-exp of the routers' logits.
      replay: take the experts that a batch names; else compare those taken with them.
    """

    balance: float = 0.0
    z: float = 0.0
    replay: bool = True

    def __call__(
        self, said: Terms, share: Float32[Array, "P G T"], *, loaded: bool, compared: bool
    ) -> tuple[Float32[Array, ""], Metrics]:
        """The term of the loss, which adds up over the parts of a batch, and metrics.

        Args:
          said: by the routers, where each token is predicted.
          share: of each token in a mean over the trained tokens of the whole batch.
          loaded: whether the routers know the load of the experts.
          compared: whether experts are given.
        """
        mean = lambda x: jnp.sum(share * x)  # noqa: E731
        loss = self.balance * mean(said.balance) + self.z * mean(said.z)
        metrics = {"loss/router": loss, "router/z": mean(said.z)}
        if loaded:
            metrics["router/balance"] = mean(said.balance)
        if compared:
            metrics["router/differs"] = mean(said.differs)
        return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def expert_load(
    experts: UInt[AnyArray, "P G T L k"], share: Float32[AnyArray, "P G T"], num_experts: int
) -> Float32[Array, "L X"]:
    """Share of the tokens that each expert gets; a layer's add up to the sum of `share`.

    Args:
      experts: of each token.
      share: of each token in a mean over the trained tokens of the whole batch.
      num_experts: X.
    """
    L, k = experts.shape[-2:]
    layer = jnp.arange(L).reshape(1, 1, 1, L, 1)
    place = layer * num_experts + jnp.asarray(experts, jnp.int32)
    weight = jnp.broadcast_to(jnp.asarray(share)[..., None, None] / k, experts.shape)
    zeros = jnp.zeros(L * num_experts, jnp.float32)
    return zeros.at[place.reshape(-1)].add(weight.reshape(-1)).reshape(L, num_experts)


def global_load(
    forward: Forward,
    params: PyTree,
    join: Callable[[list[Array]], tuple[Batch, Float32[Array, "P G T"]]],
    parts: list[Array],
    num_experts: int,
    replicas: int,
) -> Float32[Array, "L X"]:
    """`expert_load` of all parts of a batch, of all replicas, at the weights given.

    It is the factor of the balancing loss that has no gradient, and must be known before the first
    part has one. Where the experts are not given that takes a forward pass more.

    Args:
      forward: the forward pass.
      params: the policy's parameters.
      join: makes a batch, not packed, and the shares of its tokens of one part.
      parts: from `split_microbatches`.
      num_experts: X.
      replicas: above 1: inside of a `shard_map` over so many.
    """

    def of_part(part: list[Array]) -> Array:
        batch, share = join(part)
        experts = batch.experts if forward.replay else None
        if experts is None:
            experts = forward(params, batch, "none").experts
        assert experts is not None, "the batch is packed, or the model has no experts"
        return expert_load(experts, share, num_experts)

    load = jax.lax.map(of_part, parts).sum(0)
    return load if replicas == 1 else jax.lax.psum(load, "replica")


def blank_routes(
    arch: Architecture, batch: Batch
) -> tuple[UInt[ndarray, "P G T L k"], UInt[ndarray, "P Lp L k"]]:
    """Experts for `with_routes` that mean nothing, for compiling."""
    each, number = (arch.num_layers, arch.experts_per_token), number_dtype(arch)
    shapes = batch.tokens.shape, batch.prompts.tokens.shape
    experts, read = (np.zeros((*shape, *each), number) for shape in shapes)
    return experts, read


def with_routes(
    batch: Batch,
    experts: UInt[AnyArray, "P G T L k"] | None,
    read: UInt[AnyArray, "P Lp L k"] | None,
) -> Batch:
    """The batch with experts that are to be taken: for completions, and for prompts.

    None: those that the routers pick.
    """
    prompts = dataclasses.replace(batch.prompts, experts=read)
    return dataclasses.replace(batch, prompts=prompts, experts=experts)
