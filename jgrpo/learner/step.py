"""One update: log-probs, loss and gradient over microbatches and devices, then the optimizer.

Letters: P prompts, G completions per prompt, T completion tokens, Lp prompt tokens, D model width.
Weights of tokens are those of the global batch (`Batch.weights`), so losses, gradients and averaged
metrics of microbatches and devices add up to those of the whole; only names in `_max` combine by
maximum.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int, PyTree

from jgrpo import algo
from jgrpo.learner import heads
from jgrpo.learner.batch import bare
from jgrpo.learner.critic import critic_loss
from jgrpo.learner.forward import Forward, TokenFacts
from jgrpo.learner.microbatch import (
    Metrics,
    accumulated,
    combine_replicas,
    merge_microbatches,
    split_microbatches,
)
from jgrpo.learner.packing import Packed, merge_bins, pack, restore, split_bins
from jgrpo.learner.routing import RouterLoss, global_load
from jgrpo.models import decoder, stack
from jgrpo.models.logps import Entropy
from jgrpo.models.lora import joined
from jgrpo.parallel.hosts import place
from jgrpo.parallel.lowered import described
from jgrpo.parallel.rules import data_sharding, data_size, over_replicas, replicated, split_like
from jgrpo.types import AnyArray, Batch, TrainState

# Weights of the layers from which a step takes so long that compiling each layer is worth it.
_WORTH_UNSTACKING = 1_000_000
# A batch, and the share of each token in the metrics.
_Shared: TypeAlias = tuple[Batch | Packed, Float32[Array, "P G T"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """What an update needs besides state and batch; compiled in, so compared by identity.

    Attributes:
      graphdef: structure of the model.
      method: the composition of loss slots.
      optimizer: the gradient transformation.
      mesh: devices; prompts are split over its data axes.
      shapes: shape and dtype of every parameter that is trained.
      shardings: sharding of the same.
      frozen: weights beside which the trained ones are adapters (`models.lora`), on the mesh.
      temperature: the sampling temperature, at which log-probs are compared.
      remat: what the backward pass recomputes.
      logp_chunk_tokens: tokens of a device whose logits exist at once; 0: 512 MiB of them.
      microbatch_completions: completions per device and microbatch; 0: all. Packed, a microbatch
        has at most as many positions as these would take padded.
      packing: put the completions of a group behind each other in rows where that pays, and where
        it does not matter which experts each token takes.
      log_entropy: compute the mean entropy, whether or not the loss needs entropies.
      unstack: loop over the layers in place of a scan (`stack.unstacked`); None: where it pays.
      router: what is asked of routers of experts.
    """

    graphdef: nnx.GraphDef
    method: algo.Method
    optimizer: optax.GradientTransformation
    mesh: Mesh
    shapes: PyTree[jax.ShapeDtypeStruct]
    shardings: PyTree[NamedSharding]
    frozen: PyTree = None
    temperature: float = 1.0
    remat: decoder.Remat = "none"
    logp_chunk_tokens: int = 0
    microbatch_completions: int = 0
    packing: bool = False
    log_entropy: bool = True
    unstack: bool | None = None
    router: RouterLoss = dataclasses.field(default_factory=RouterLoss)

    def init(self, params: PyTree) -> TrainState:
        """Places weights and a fresh optimizer state on the mesh.

        What is trained beside the policy stands in `aux`, all zeros.

        Args:
          params: initial weights, in any placement.
        """
        # A copy in any case: the state's buffers are donated, the caller's must survive.
        copy = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=self.shardings)
        params = copy(place(params, self.shardings))
        head = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._head_shapes)
        head = place(head, self._head_shardings)
        opt_state = jax.jit(self.optimizer.init, out_shardings=self.opt_shardings)(params | head)
        zero = jnp.zeros((), jnp.int32)
        step, cursor = place((zero, zero), replicated(self.mesh))
        kept = heads.keeps_reference(self.method) and self.frozen is None
        ref_params = copy(params) if kept else None
        return TrainState(
            step=step,
            cursor=cursor,
            params=params,
            opt_state=opt_state,
            ref_params=ref_params,
            aux=head,
        )

    @cached_property
    def _head_shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Of what is trained beside the policy, by name; empty if there is nothing."""
        return heads.shapes(self.method, self.shapes)

    @cached_property
    def _head_shardings(self) -> PyTree[NamedSharding]:
        return heads.shardings(self.method, self.shardings, self.mesh)

    @cached_property
    def opt_shardings(self) -> PyTree[NamedSharding]:
        """Sharding of every leaf of the optimizer's state: its parameter's, or replicated."""
        state = jax.eval_shape(self.optimizer.init, self.shapes | self._head_shapes)
        whole = replicated(self.mesh)
        return optax.tree_map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            state,
            self.shardings | self._head_shardings,
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
        part, _ = self._placed(batch)
        trained, opt_state, metrics = self._jitted_update(
            self._trained(state), state.opt_state, part, self.frozen
        )
        head = {name: trained.pop(name) for name in self._head_shapes}
        new = {"params": trained, "opt_state": opt_state, "aux": state.aux | head}
        return dataclasses.replace(state, **new), metrics

    def lower_update(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The program of `update` for batches laid out like this one; the state may be shapes."""
        part, _ = self._placed(batch, described)
        return self._jitted_update.lower(self._trained(state), state.opt_state, part, self.frozen)

    def lower_forward(self, state: TrainState, batch: Batch, *, facts: bool) -> jax.stages.Lowered:
        """The program of `facts` or `logps` for batches laid out like this one, likewise."""
        function, weights = self._jitted_logps, state.params
        if facts:
            function, weights = self._jitted_facts, self._trained(state)
        return function.lower(weights, *self._placed(bare(batch), described), self.frozen)

    def logps(self, params: PyTree, batch: Batch) -> Float32[Array, "P G T"]:
        """Log-probs of the batch's trained tokens under other weights (reference, start of step).

        What stands at other tokens has no meaning. None: the frozen weights without adapters.
        """
        return self._jitted_logps(params, *self._placed(bare(batch)), self.frozen)

    def routes(self, params: PyTree, batch: Batch) -> tuple[Array, Array, Array]:
        """Log-probs as `logps` gives them, and the experts taken for completions and prompts."""
        padded = place(bare(batch), data_sharding(self.mesh))
        logp, experts, read = self._jitted_routes(params, padded, None, self.frozen)
        return logp, experts, read[:, 0]

    def facts(self, state: TrainState, batch: Batch) -> TokenFacts:
        """All that a forward pass at the state's weights says about the batch's trained tokens."""
        return self.facts_of(self._trained(state), batch)

    def facts_of(self, weights: PyTree, batch: Batch) -> TokenFacts:
        """The same at weights of any origin, those of heads among them by name."""
        return self._jitted_facts(weights, *self._placed(bare(batch)), self.frozen)

    def follow(self, ref_params: PyTree, params: PyTree, decay: float) -> PyTree:
        """The reference policy moved towards the policy: params + decay (ref - params); donates."""
        return self._jitted_follow(ref_params, params, decay)

    @cached_property
    def _jitted_follow(self) -> jax.stages.Wrapped:
        def follow(ref_params: PyTree, params: PyTree, decay: Float32[Array, ""]) -> PyTree:
            move = lambda old, new: (new + decay * (old - new)).astype(old.dtype)  # noqa: E731
            return jax.tree.map(move, ref_params, params)

        return jax.jit(follow, donate_argnums=0, out_shardings=self.shardings)

    def _trained(self, state: TrainState) -> dict[str, PyTree]:
        return heads.trained_of(state, self._head_shapes)

    @property
    def compiled_updates(self) -> int:
        """Number of programs compiled for updates so far: one per layout of a batch."""
        return self._jitted_update._cache_size()  # pyright: ignore[reportAttributeAccessIssue]

    def _placed(
        self, batch: Batch, placing: Callable[..., Any] = place
    ) -> tuple[Batch | Packed, Int[AnyArray, "P G"] | None]:
        part, home = self._laid_out(batch)
        return placing(part, data_sharding(self.mesh)), home

    def _laid_out(self, batch: Batch) -> tuple[Batch | Packed, Int[AnyArray, "P G"] | None]:
        """The batch, packed if that is asked and pays; then also where each completion went."""
        if not self.packing or self.router.balance or batch.experts is not None:
            return batch, None
        size = self.microbatch_completions
        found = pack(batch, devices=data_size(self.mesh), microbatch_completions=size)
        return found or (batch, None)

    @cached_property
    def _jitted_update(self) -> jax.stages.Wrapped:
        trained = self.shardings | self._head_shardings
        out = (trained, self.opt_shardings, replicated(self.mesh))
        return jax.jit(self._update, donate_argnums=(0, 1), out_shardings=out)

    @cached_property
    def _jitted_logps(self) -> jax.stages.Wrapped:
        return self._jitted_forward(lambda facts: facts.logp, "none")

    @cached_property
    def _jitted_facts(self) -> jax.stages.Wrapped:
        return self._jitted_forward(lambda facts: facts._replace(experts=None, read=None), "value")

    @cached_property
    def _jitted_routes(self) -> jax.stages.Wrapped:
        return self._jitted_forward(lambda facts: (facts.logp, facts.experts, facts.read), "none")

    def _jitted_forward(
        self, wanted: Callable[[TokenFacts], PyTree], entropy: Entropy
    ) -> jax.stages.Wrapped:
        def over_microbatches(trained: PyTree, batch: Batch | Packed, frozen: PyTree) -> PyTree:
            parts, join, merge = self._split(batch)
            trained = joined(self._loose(frozen), self._loose(trained))
            facts = lambda part: wanted(self._forward(trained, join(part), entropy))  # noqa: E731
            return jax.tree.map(merge, jax.lax.map(facts, parts))

        mapped = over_replicas(self.mesh, over_microbatches, PartitionSpec("replica"))

        def in_order(
            trained: PyTree, batch: Batch | Packed, home: Array | None, frozen: PyTree
        ) -> PyTree:
            facts = mapped(trained, batch, frozen)
            return facts if home is None else jax.tree.map(lambda x: restore(x, home), facts)

        return jax.jit(in_order)

    @cached_property
    def _forward(self) -> Forward:
        return Forward(
            graphdef=self.graphdef,
            temperature=self.temperature,
            remat=self.remat,
            logp_chunk_tokens=self.logp_chunk_tokens,
            mesh=self.mesh,
            replay=self.router.replay,
        )

    @property
    def _asked_entropy(self) -> Entropy:
        if self.method.bonus != "none":
            return "gradient"
        return "value" if self.log_entropy else "none"

    def _loose(self, params: PyTree) -> PyTree:
        """The parameters as the programs take them, or None.

        A scan over the layers copies what the backward pass needs of each into a stack and out of
        it. On one CPU that is memory traffic which large models save by a program that is longer.
        """
        unstack = self.unstack
        if unstack is None:
            size = sum(x.size for x in jax.tree.leaves((self.frozen or self.shapes)["layers"]))
            one_cpu = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
            unstack = one_cpu and size >= _WORTH_UNSTACKING
        return stack.unstacked(params) if unstack and params is not None else params

    def _split(self, data: PyTree) -> tuple[list[Array], Callable, Callable]:
        """Bare arrays of a replica's microbatches; how one is joined, and how results merge."""
        batches = jax.tree.leaves(data, is_leaf=lambda x: isinstance(x, Batch | Packed))
        first, shards = batches[0], data_size(self.mesh) // self.mesh.shape["replica"]
        if isinstance(first, Packed):
            parts = split_bins(data, first.reads.shape[0], shards)
            join = partial(jax.tree.unflatten, jax.tree.structure(data))
            return parts, join, partial(merge_bins, shards=shards)
        # Of a whole replica: XLA splits it over its other axes.
        parts, join = split_microbatches(data, self.microbatch_completions, shards)
        num_prompts = first.tokens.shape[0]
        return parts, join, partial(merge_microbatches, num_prompts=num_prompts)

    def _update(
        self, params: PyTree, opt_state: PyTree, part: Batch | Packed, frozen: PyTree = None
    ) -> tuple[PyTree, PyTree, Metrics]:
        mask = _rows(part).mask
        share = mask / jnp.maximum(mask.sum(), 1).astype(jnp.float32)
        both = over_replicas(self.mesh, self._sum_gradients, PartitionSpec())
        grads, metrics = both(params, (part, share), frozen)
        grads = jax.lax.with_sharding_constraint(grads, self.shardings | self._head_shardings)
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
        self, params: PyTree, data: _Shared, frozen: PyTree
    ) -> tuple[PyTree, Metrics]:
        """Gradient and metrics of the global batch, from this replica's part of it."""
        parts, join, _ = self._split(data)
        params, frozen = self._loose(params), self._loose(frozen)
        load = None
        if self.router.balance:
            whole, replicas = joined(frozen, params), self.mesh.shape["replica"]
            experts = (self.frozen or self.shapes)["layers"]["router"].shape[-1]
            load = global_load(self._forward, whole, join, parts, experts, replicas)
        gradient = jax.grad(
            lambda params, part: self._loss(joined(frozen, params), join(part), load), has_aux=True
        )
        if parts[0].shape[0] == 1:
            grads, metrics = gradient(params, [x[0] for x in parts])
        else:
            owners = self.shardings | self._head_shardings
            grads, metrics = accumulated(gradient, params, parts, partial(split_like, owners))
        grads = jax.tree.map(lambda x: x.astype(jnp.float32), stack.stacked(grads))
        if self.mesh.shape["replica"] == 1:
            return grads, metrics
        return jax.lax.psum(grads, "replica"), combine_replicas(metrics)

    def _loss(
        self, params: PyTree, data: _Shared, load: Float32[Array, "L X"] | None
    ) -> tuple[Float32[Array, ""], Metrics]:
        part, share = data
        batch = _rows(part)
        facts = self._forward(params, part, self._asked_entropy, load)
        logp, entropy = facts.logp, facts.entropy
        rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731 (a group is G plain rows to a loss)
        old_logp, behavior_logp = batch.old_logp, batch.behavior_logp
        if batch.unit_ratio is not None:  # for these the gradient is that of the log-likelihood
            own = jax.lax.stop_gradient(logp)
            old_logp = jnp.where(batch.unit_ratio, own, old_logp)
            if behavior_logp is not None:
                behavior_logp = jnp.where(batch.unit_ratio, own, behavior_logp)
        loss, metrics = algo.policy_loss(
            self.method,
            rows(logp),
            old_logp=rows(old_logp),
            mask=rows(batch.mask),
            advantages=rows(batch.advantages),
            ref_logp=None if batch.ref_logp is None else rows(batch.ref_logp),
            behavior_logp=None if behavior_logp is None else rows(behavior_logp),
            weights=rows(batch.weights),
            token_share=rows(share),
            segments=None if batch.segments is None else rows(batch.segments),
            entropy=None if entropy is None else rows(entropy),
            entropy_mask=None if batch.entropy_mask is None else rows(batch.entropy_mask),
            off_policy=None if batch.off_policy is None else rows(batch.off_policy),
        )
        if facts.values is not None:
            value_loss, value_metrics = critic_loss(self.method, facts.values, batch, share)
            loss, metrics = loss + value_loss, metrics | value_metrics
        if facts.router is not None:
            given = {"loaded": load is not None, "compared": batch.experts is not None}
            router_loss, router_metrics = self.router(facts.router, share, **given)
            loss, metrics = loss + router_loss, metrics | router_metrics
        if batch.score_weights is not None:
            assert facts.scores is not None
            loss = loss + jnp.sum(batch.score_weights * facts.scores)
        same = batch.mask if batch.off_policy is None else batch.mask & ~batch.off_policy
        gap = jnp.where(same, jnp.abs(jax.lax.stop_gradient(logp) - old_logp), 0.0)
        extra = {
            "loss/total": jax.lax.stop_gradient(loss),
            "invariant/logp_gap_max": gap.max(),
        }
        if entropy is not None:
            extra["entropy/mean"] = jnp.sum(share * jax.lax.stop_gradient(entropy))
        return loss, metrics | extra


def _rows(part: Batch | Packed) -> Batch:
    """The completions of a batch by rows, whether it is packed or not."""
    return part.batch if isinstance(part, Packed) else part
