"""One update: log-probs, loss and gradient over microbatches and devices, then the optimizer.

Letters: P prompts, G completions per prompt, T completion tokens, Lp prompt tokens, D model width.
Weights of tokens are those of the global batch (`Batch.weights`), so losses, gradients and averaged
metrics of microbatches and devices add up to those of the whole; only names in `_max` combine by
maximum.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Float, Float32, Int, PyTree

from jgrpo import algo
from jgrpo.models import decoder
from jgrpo.models.logps import token_logps
from jgrpo.parallel.rules import data_sharding, replicated
from jgrpo.types import AnyArray, Batch, Prompts, TrainState

Metrics = dict[str, Float32[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """What an update needs besides state and batch; compiled in, so compared by identity.

    Attributes:
      graphdef: structure of the model.
      method: the composition of loss slots.
      optimizer: the gradient transformation.
      mesh: devices; prompts are split over its data axes.
      shapes: shape and dtype of every parameter.
      shardings: sharding of every parameter.
      temperature: the sampling temperature, at which log-probs are compared.
      remat: what the backward pass recomputes.
      logp_chunk_tokens: tokens whose logits exist at once.
      microbatch_completions: completions per device and microbatch; 0: all.
    """

    graphdef: nnx.GraphDef
    method: algo.Method
    optimizer: optax.GradientTransformation
    mesh: Mesh
    shapes: PyTree[jax.ShapeDtypeStruct]
    shardings: PyTree[NamedSharding]
    temperature: float = 1.0
    remat: decoder.Remat = "none"
    logp_chunk_tokens: int = 4096
    microbatch_completions: int = 0

    def init(self, params: PyTree) -> TrainState:
        """Places weights and a fresh optimizer state on the mesh.

        Args:
          params: initial weights, in any placement.
        """
        # A copy in any case: the state's buffers are donated, the caller's must survive.
        copy = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=self.shardings)
        params = copy(jax.device_put(params, self.shardings))
        opt_state = jax.jit(self.optimizer.init, out_shardings=self.opt_shardings)(params)
        zero = jnp.zeros((), jnp.int32)
        step, cursor = jax.device_put((zero, zero), replicated(self.mesh))
        ref_params = copy(params) if "ref_logp" in algo.needs(self.method) else None
        return TrainState(
            step=step, cursor=cursor, params=params, opt_state=opt_state, ref_params=ref_params
        )

    @cached_property
    def opt_shardings(self) -> PyTree[NamedSharding]:
        """Sharding of every leaf of the optimizer's state: its parameter's, or replicated."""
        state = jax.eval_shape(self.optimizer.init, self.shapes)
        whole = replicated(self.mesh)
        return optax.tree_map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            state,
            self.shardings,
            transform_non_params=lambda _: whole,
        )

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Makes one optimizer update; the state's buffers are donated.

        A gradient or an update whose norm is not finite leaves weights and optimizer as they were,
        and is counted in `optim/skipped_updates`.

        Args:
          state: the state to update.
          batch: one minibatch; its prompts must divide over the data axes of the mesh.

        Returns:
          The new state (`step` and `cursor` unchanged) and the metrics of this update.
        """
        batch = jax.device_put(batch, data_sharding(self.mesh))
        params, opt_state, metrics = self._jitted_update(state.params, state.opt_state, batch)
        return dataclasses.replace(state, params=params, opt_state=opt_state), metrics

    def logps(self, params: PyTree, batch: Batch) -> Float32[Array, "P G T"]:
        """Log-probs of the batch's completions under other weights (reference, start of step)."""
        return self._jitted_logps(params, jax.device_put(batch, data_sharding(self.mesh)))

    @property
    def _replica_microbatch(self) -> int:
        """Completions per microbatch of a whole replica, which XLA splits over `fsdp`."""
        return self.microbatch_completions * self.mesh.shape["fsdp"]

    @cached_property
    def _jitted_update(self) -> Callable[..., tuple[PyTree, PyTree, Metrics]]:
        return jax.jit(
            self._update,
            donate_argnums=(0, 1),
            out_shardings=(self.shardings, self.opt_shardings, replicated(self.mesh)),
        )

    @cached_property
    def _jitted_logps(self) -> Callable[..., Float32[Array, "P G T"]]:
        def over_microbatches(params: PyTree, batch: Batch) -> Float32[Array, "P G T"]:
            parts, join = split_microbatches(batch, self._replica_microbatch)
            logp = jax.lax.map(lambda part: self._token_logps(params, join(part))[0], parts)
            return merge_microbatches(logp, batch.tokens.shape[0])

        return jax.jit(self._over_devices(over_microbatches, PartitionSpec("replica")))

    def _over_devices(self, function: Callable, out_specs: PyTree) -> Callable:
        """Maps `(params, batch)` over the replicas; the other mesh axes are left to XLA."""
        if self.mesh.shape["replica"] == 1:
            return function  # XLA's partitioner refuses a manual axis of size 1 beside others.
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec("replica")),
            out_specs=out_specs,
            axis_names={"replica"},
            check_vma=False,
        )

    def _update(
        self, params: PyTree, opt_state: PyTree, batch: Batch
    ) -> tuple[PyTree, PyTree, Metrics]:
        share = batch.mask / jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)
        both = self._over_devices(self._sum_gradients, PartitionSpec())
        grads, metrics = both(params, (batch, share))
        grads = jax.lax.with_sharding_constraint(grads, self.shardings)
        norm = optax.tree.norm(grads)
        updates, new_opt_state = self.optimizer.update(grads, opt_state, params)
        finite = jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        new = (optax.apply_updates(params, updates), new_opt_state)
        params, opt_state = jax.tree.map(
            lambda old, fresh: jnp.where(finite, fresh, old), (params, opt_state), new
        )
        skipped = 1.0 - finite.astype(jnp.float32)
        return params, opt_state, metrics | {"grad/norm": norm, "optim/skipped_updates": skipped}

    def _sum_gradients(
        self, params: PyTree, data: tuple[Batch, Float32[Array, "P G T"]]
    ) -> tuple[PyTree, Metrics]:
        """Gradient and metrics of the global batch, from this replica's part of it."""
        parts, join = split_microbatches(data, self._replica_microbatch)
        gradient = jax.grad(lambda params, part: self._loss(params, join(part)), has_aux=True)
        if parts[0].shape[0] == 1:
            grads, metrics = gradient(params, [x[0] for x in parts])
        else:
            grads, metrics = self._accumulate(gradient, params, parts)
        grads = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
        if self.mesh.shape["replica"] == 1:
            return grads, metrics
        return jax.lax.psum(grads, "replica"), _combine_replicas(metrics)

    def _accumulate(
        self, gradient: Callable, params: PyTree, parts: list[Array]
    ) -> tuple[PyTree, Metrics]:
        def add(total: tuple[PyTree, Metrics], part: list[Array]) -> tuple[PyTree, None]:
            grads, metrics = gradient(params, part)
            grads = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total[0], grads)
            return (grads, _combine(total[1], metrics)), None

        _, metric_shapes = jax.eval_shape(gradient, params, [x[0] for x in parts])
        zeros = (
            jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params),
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metric_shapes),
        )
        return jax.lax.scan(add, zeros, parts)[0]

    def _loss(
        self, params: PyTree, data: tuple[Batch, Float32[Array, "P G T"]]
    ) -> tuple[Float32[Array, ""], Metrics]:
        batch, share = data
        logp, entropy = self._token_logps(params, batch)
        rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731 (a group is G plain rows to a loss)
        old_logp = batch.old_logp
        if batch.unit_ratio is not None:  # for these the gradient is that of the log-likelihood
            own = jax.lax.stop_gradient(logp)
            old_logp = jnp.where(batch.unit_ratio[:, :, None], own, old_logp)
        loss, metrics = algo.policy_loss(
            self.method,
            rows(logp),
            old_logp=rows(old_logp),
            mask=rows(batch.mask),
            advantages=rows(batch.advantages),
            ref_logp=None if batch.ref_logp is None else rows(batch.ref_logp),
            behavior_logp=None if batch.behavior_logp is None else rows(batch.behavior_logp),
            weights=rows(batch.weights),
            token_share=rows(share),
            segments=None if batch.segments is None else rows(batch.segments),
            entropy=None if self.method.bonus == "none" else rows(entropy),
        )
        gap = jnp.where(batch.mask, jnp.abs(jax.lax.stop_gradient(logp) - old_logp), 0.0)
        extra = {
            "loss/total": jax.lax.stop_gradient(loss),
            "entropy/mean": jnp.sum(share * jax.lax.stop_gradient(entropy)),
            "invariant/logp_gap_max": gap.max(),
        }
        return loss, metrics | extra

    def _token_logps(
        self, params: PyTree, batch: Batch
    ) -> tuple[Float32[Array, "P G T"], Float32[Array, "P G T"]]:
        """Log-probs and entropies of the completions, each prompt encoded once."""
        hidden = completion_hidden(
            self.graphdef, params, batch.prompts, batch.tokens, remat=self.remat
        )
        logp, entropy = token_logps(
            hidden.reshape(-1, hidden.shape[-1]),
            decoder.head_weight(params),
            jnp.asarray(batch.tokens).reshape(-1),
            temperature=self.temperature,
            chunk_tokens=self.logp_chunk_tokens,
            entropy="value" if self.method.bonus == "none" else "gradient",
        )
        assert entropy is not None
        return logp.reshape(batch.tokens.shape), entropy.reshape(batch.tokens.shape)


def completion_hidden(
    graphdef: nnx.GraphDef,
    params: PyTree,
    prompts: Prompts,
    tokens: Int[AnyArray, "P G T"],
    *,
    remat: decoder.Remat = "none",
) -> Float[Array, "P G T D"]:
    """Hidden states from which each completion token is predicted.

    The prompt runs through the model once a group. Its last position predicts every completion's
    first token; completion token t - 1 predicts token t.
    """
    last, cache = decoder.prefill(graphdef, params, prompts.tokens, prompts.mask, remat=remat)
    p, g, t = tokens.shape
    first = jnp.broadcast_to(last[:, None, -1:], (p, g, 1, last.shape[-1]))
    if t == 1:
        return first
    rest, _ = decoder.complete(graphdef, params, tokens[:, :, :-1], cache, remat=remat)
    return jnp.concatenate([first, rest], axis=2)


def split_microbatches(
    data: PyTree, completions: int
) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """Cuts a batch into equal parts along a new leading dim.

    Whole groups stay together while they fit; a smaller part takes some completions of a group,
    and the prompt with it. Rows are dealt out in turn, so that on a mesh each part has rows of
    every device.

    Args:
      data: a batch, and further arrays [P, G, ...].
      completions: completions per part; 0: all in one.

    Returns:
      The arrays of all parts, bare because no record has their leading dim, and the function that
      puts the arrays of one part together again.

    Raises:
      ValueError: if the completions cannot be cut like that.
    """
    p, g = jax.tree.leaves(data, is_leaf=lambda x: isinstance(x, Batch))[0].tokens.shape[:2]
    size = completions or p * g
    of_group = min(size, g)
    rows = max(1, size // g)
    if g % of_group or (size > g and size % g) or (p * g) % (rows * of_group):
        raise ValueError(
            f"optim.microbatch_completions = {completions} does not divide {p} prompts x {g} "
            f"completions per device: use a divisor of {g}, or {g} x a divisor of {p}"
        )

    def cut(x: Array, per_prompt: bool) -> Array:
        if per_prompt:
            x = jnp.repeat(x, g // of_group, axis=0)
        else:
            x = x.reshape(p * (g // of_group), of_group, *x.shape[2:])
        return jnp.swapaxes(x.reshape(rows, -1, *x.shape[1:]), 0, 1)

    leaves, structure = jax.tree.flatten_with_path(data)
    parts = [cut(x, per_prompt=GetAttrKey("prompts") in path) for path, x in leaves]
    return parts, partial(jax.tree.unflatten, structure)


def merge_microbatches(parts: Array, num_prompts: int) -> Array:
    """Undoes `split_microbatches` for one array [N, rows, completions, ...] -> [P, G, ...]."""
    rows = jnp.swapaxes(parts, 0, 1)
    return rows.reshape(num_prompts, -1, *parts.shape[3:])


def _combine(a: Metrics, b: Metrics) -> Metrics:
    return {
        name: jnp.maximum(a[name], b[name]) if name.endswith("_max") else a[name] + b[name]
        for name in a
    }


def _combine_replicas(metrics: Metrics) -> Metrics:
    return {
        name: (jax.lax.pmax if name.endswith("_max") else jax.lax.psum)(value, "replica")
        for name, value in metrics.items()
    }
