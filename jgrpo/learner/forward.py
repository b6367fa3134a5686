"""What one forward pass says about the tokens of a batch, padded or packed.

Letters: P prompts, G completions per prompt, T completion tokens, D model width, B and N as in
`packing.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, PyTree, UInt

from jgrpo.learner.critic import token_values
from jgrpo.learner.heads import without_heads
from jgrpo.learner.packing import Packed, spread
from jgrpo.learner.preference import prefix_scores
from jgrpo.models import decoder, moe
from jgrpo.models.logps import Entropy, chunk_tokens, token_logps
from jgrpo.types import AnyArray, Batch, Prompts


class TokenFacts(NamedTuple):
    """What one forward pass says about the tokens of a batch.

    Attributes:
      logp: log-prob of each token, in nats.
      entropy: of the policy before each token, in nats, or None if it was not asked.
      values: predicted return before each token, or None without a critic.
      scores: of the prompt and the tokens before each token, or None without a preference model.
      router: what the routers say where each token is predicted, or None without experts.
      experts: the experts taken there, or None; None too where the batch is packed.
      read: the experts taken for each token of the prompt, likewise.
    """

    logp: Float32[AnyArray, "P G T"]
    entropy: Float32[AnyArray, "P G T"] | None = None
    values: Float32[AnyArray, "P G T"] | None = None
    scores: Float32[AnyArray, "P G T"] | None = None
    router: moe.Terms | None = None
    experts: UInt[AnyArray, "P G T L k"] | None = None
    read: UInt[AnyArray, "P 1 Lp L k"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
    """How the forward pass runs; compiled in.

    Attributes:
      graphdef: structure of the model.
      temperature: the sampling temperature, at which log-probs are compared.
      remat: what the backward pass recomputes.
      logp_chunk_tokens: tokens of a device whose logits exist at once; 0: 512 MiB of them.
      mesh: the devices.
      replay: take the experts that a batch names; else compare those taken with them.
    """

    graphdef: nnx.GraphDef
    temperature: float
    remat: decoder.Remat
    logp_chunk_tokens: int
    mesh: Mesh
    replay: bool = True

    def __call__(
        self,
        trained: Mapping[str, Any],
        part: Batch | Packed,
        entropy: Entropy,
        load: Float32[Array, "L X"] | None = None,
    ) -> TokenFacts:
        """Log-probs, entropies and values of the completions, each prompt encoded once.

        Args:
          trained: the policy's parameters, and the critic under its name.
          part: a batch or microbatch. What is said of its untrained tokens has no meaning.
          entropy: whether entropies are asked, and differentiable.
          load: share of the batch's tokens that each expert of each layer gets, if it is asked
            what the routers do about it.
        """
        params, read = without_heads(trained), None
        if isinstance(part, Packed):
            hidden, routed = packed_hidden(self.graphdef, params, part, remat=self.remat, load=load)
            targets = jnp.asarray(part.targets)
            places = jnp.asarray(part.places)
            by_completion = lambda x: spread(x.reshape(targets.shape), places)  # noqa: E731
        else:
            hidden, routed, read = completion_hidden(
                self.graphdef,
                params,
                part.prompts,
                part.tokens,
                remat=self.remat,
                routes=moe.Routes(experts=part.experts, load=load, taken=self.replay),
            )
            targets = jnp.asarray(part.tokens)
            by_completion = lambda x: x.reshape(targets.shape)  # noqa: E731
        head = decoder.head_weight(params)
        logp, spreads = token_logps(
            hidden.reshape(-1, hidden.shape[-1]),
            head,
            targets.reshape(-1),
            temperature=self.temperature,
            chunk_tokens=chunk_tokens(self.logp_chunk_tokens, head.shape[0]),
            entropy=entropy,
            mesh=self.mesh,
        )
        # A preference model reads completions from their beginnings: it goes with no packing.
        scores = None if isinstance(part, Packed) else prefix_scores(trained, hidden)
        router = None if routed is None else routed.terms
        facts = TokenFacts(logp, spreads, token_values(trained, hidden), scores, router)
        facts = jax.tree.map(by_completion, facts)
        if routed is None or read is None:
            return facts
        return facts._replace(experts=routed.experts, read=read[:, None])


def completion_hidden(
    graphdef: nnx.GraphDef,
    params: PyTree,
    prompts: Prompts,
    tokens: Int[AnyArray, "P G T"],
    *,
    remat: decoder.Remat = "none",
    routes: moe.Routes = moe.Routes(),  # noqa: B008 (frozen)
) -> tuple[Float[Array, "P G T D"], moe.Routed | None, UInt[Array, "P Lp L k"] | None]:
    """Hidden states from which each completion token is predicted.

    The prompt runs through the model once a group. Its last position predicts every completion's
    first token; completion token t - 1 predicts token t.

    Args:
      graphdef: structure of the model.
      params: its weights.
      prompts: with the experts that are taken for their tokens, or None.
      tokens: completion ids.
      remat: what the backward pass recomputes.
      routes: what routers are told of the positions that predict tokens.

    Returns:
      The states, what the routers say at them, and the experts taken for the prompts' tokens;
      None each without experts.
    """
    told = dataclasses.replace(routes, experts=prompts.experts)
    last, cache = decoder.prefill(
        graphdef, params, prompts.tokens, prompts.mask, remat=remat, routes=told
    )
    p, g, t = tokens.shape
    first = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:, None, -1:], (p, g, 1, *x.shape[2:])), (last, cache.routed)
    )
    read = None if cache.routed is None else cache.routed.experts
    if t == 1:
        return *first, read
    if routes.experts is not None:
        routes = dataclasses.replace(routes, experts=routes.experts[:, :, 1:])
    rest = decoder.complete(graphdef, params, tokens[:, :, :-1], cache, remat=remat, routes=routes)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), first, rest)
    return *joined, read


def packed_hidden(
    graphdef: nnx.GraphDef,
    params: PyTree,
    packed: Packed,
    *,
    remat: decoder.Remat = "none",
    load: Float32[Array, "L X"] | None = None,
) -> tuple[Float[Array, "B N D"], moe.Routed | None]:
    """Hidden states from which the tokens of each bin are predicted, in the order of `reads`.

    Also what the routers say at them. `load` is that of `moe.Routes`.
    """
    prompts, routes = packed.batch.prompts, moe.Routes(load=load)
    last, cache = decoder.prefill(
        graphdef, params, prompts.tokens, prompts.mask, remat=remat, routes=routes
    )
    slots = decoder.complete(
        graphdef,
        params,
        packed.tokens,
        cache,
        remat=remat,
        packed=(packed.segments, packed.offsets),
        routes=routes,
    )
    reads = jnp.asarray(packed.reads)

    def read(slots: Array, ends: Array) -> Array:
        by_bin = (len(reads), -1, *ends.shape[2:])
        states = jnp.concatenate([slots.reshape(by_bin), ends[:, -1].reshape(by_bin)], axis=1)
        return jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="clip"))(states, reads)

    return jax.tree.map(read, slots, (last, cache.routed))
