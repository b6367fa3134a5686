"""The decode loop: prompts are read once, and slots draw one completion of them after another.

A *lane* holds one prompt and S *slots*. Each slot makes one completion at a time; when it ends, by
an EOS or by its length, the slot takes the next completion of the same prompt that nobody has begun
(`_hand_out`), inside the compiled loop. A lane whose completions are all done gets the next prompt
between two calls (`admit`). With as many slots as completions this is plain batched decoding.

The keys and values of a slot's completion stand in a ring of W positions. All slots write at the
same place of their rings at each step, so that a write is one slice, and a slot of length n looks
at the n youngest entries. W is a shape: it changes between calls (`resize`), not inside one.

Letters: N lanes, S slots of a lane, G completions of a prompt, C steps of a call, W width of the
rings, V vocabulary, D model width.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key, PyTree, UInt

from jgrpo.models import cache, decoder
from jgrpo.models.int8 import Precision
from jgrpo.rollout.sample import Sampling, draw
from jgrpo.types import Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are drawn and what ends a completion; compiled in.

    Attributes:
      sampling: temperature and filters.
      eos_ids: tokens that end a completion.
      routes: whether the experts that each token took are noted.
    """

    sampling: Sampling
    eos_ids: tuple[int, ...]
    routes: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Completions in the making.

    Attributes:
      prompt: keys and values of the lanes' prompts.
      first: the last hidden state of each prompt, which predicts every first token.
      keys: one key per completion; token t is drawn with `fold_in(key, t)`.
      until: number of the completion of its prompt before which each lane stops.
      handed: number of the completion that a slot of the lane takes next.
      own: keys and values of the completions.
      written: entries written to the rings; the next goes to `written % W`.
      token: the token each slot drew last.
      length: tokens drawn of the slot's completion; 0: it is about to begin.
      member: number of the slot's completion in its group; from `until` on, the slot is idle.
      read: the experts taken for each token of the lanes' prompts, where they are noted, or None.
    """

    prompt: cache.PromptCache
    first: Float[Array, "N D"]
    keys: Key[Array, "N G"]
    until: Int[Array, " N"]
    handed: Int[Array, " N"]
    own: cache.Rings
    written: Int[Array, ""]
    token: Int[Array, "N S"]
    length: Int[Array, "N S"]
    member: Int[Array, "N S"]
    read: UInt[Array, "N Lp L k"] | None = None

    @property
    def active(self) -> Bool[Array, "N S"]:
        """False where a slot has nothing left to do."""
        return self.member < self.until[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the slots drew, in the order in which they drew it.

    Attributes:
      token: token ids.
      logp: their log-probs in nats, at the sampling temperature over the full vocabulary.
      member: the completion each belongs to; -1 where a slot was idle.
      index: the token's place in its completion.
      steps: steps made; what follows them in the arrays is idle.
      goes_on: the completion that each slot is at after these steps.
      experts: taken where each token was predicted (of first tokens nothing is said), or None.
      read: as in `Decoding`.
    """

    token: Int[Array, "C N S"]
    logp: Float32[Array, "C N S"]
    member: Int[Array, "C N S"]
    index: Int[Array, "C N S"]
    steps: Int[Array, ""]
    goes_on: Int[Array, "N S"]
    experts: UInt[Array, "C N S L k"] | None = None
    read: UInt[Array, "N Lp L k"] | None = None


def start(
    graphdef: nnx.GraphDef,
    params: PyTree,
    prompts: Prompts,
    keys: Key[Array, "N G"],
    begin: Int[Array, " N"],
    until: Int[Array, " N"],
    limit: Int[Array, " N"],
    *,
    slots: int,
    width: int,
    drawing: Drawing,
    kv: Precision = "model",
) -> tuple[Decoding, Drawn]:
    """Reads the prompts and draws the first token of a completion in every slot.

    Args:
      graphdef: structure of the model.
      params: its weights.
      prompts: one per lane.
      keys: one key per completion.
      begin: number of the completion of its prompt that each lane makes first.
      until: number of the one before which it stops; `begin` for a lane without work.
      limit: longest completion of each lane in tokens.
      slots: slots of a lane.
      width: positions of the rings to begin with.
      drawing: how tokens are drawn.
      kv: precision of keys and values: the model's, or int8.
    """
    read = _read(graphdef, params, prompts, kv == "int8", drawing.routes)
    n = prompts.uid.shape[0]
    state = Decoding(
        **read,
        keys=keys,
        until=until,
        own=cache.empty_rings(read["prompt"], slots, width),
        written=jnp.zeros((), jnp.int32),
        **_fresh_slots(begin, slots),
    )
    # The completions of a prompt share the distribution of their first token: one row a prompt.
    logits = decoder.logits(params, state.first)
    logits = jnp.broadcast_to(logits[:, None], (n, slots, logits.shape[-1]))
    state, row = _draw(state, logits, limit, drawing)
    drawn = jax.tree.map(lambda x: x[None], row)
    return state, Drawn(**drawn, steps=jnp.int32(1), goes_on=state.member, read=state.read)


def advance(
    graphdef: nnx.GraphDef,
    params: PyTree,
    state: Decoding,
    until: Int[Array, " N"],
    limit: Int[Array, " N"],
    stopped: Bool[Array, "N G"] | None = None,
    *,
    steps: int,
    drawing: Drawing,
) -> tuple[Decoding, Drawn]:
    """Makes up to `steps` steps; it ends early when no slot has anything to do.

    Args:
      graphdef: structure of the model.
      params: its weights.
      state: from `start`, `admit`, `resize` or this function; W must have room.
      until: what the lanes are to make from here on, less than before where others take it over.
      limit: longest completion of each lane in tokens.
      stopped: completions that end here although no token says so (stop strings), or None.
      steps: most steps.
      drawing: how tokens are drawn.
    """
    state = dataclasses.replace(state, until=until)
    if stopped is not None:
        state = _hand_out(state, state.active & _by_member(stopped, state.member))
    width = cache.ring_width(state.own)

    def unfinished(carry: tuple[Decoding, Drawn]) -> Bool[Array, ""]:
        s, drawn = carry
        return (drawn.steps < steps) & s.active.any()

    def step(carry: tuple[Decoding, Drawn]) -> tuple[Decoding, Drawn]:
        s, drawn = carry
        age = (s.written - jnp.arange(width)) % width
        hidden, own, routed = decoder.extend(
            graphdef,
            params,
            s.token,
            s.prompt,
            s.own,
            at=s.written % width,
            before=s.length - 1,
            visible=age[None, None] < s.length[..., None],
        )
        hidden = jnp.where((s.length == 0)[..., None], s.first[:, None], hidden)
        s = dataclasses.replace(s, own=own, written=s.written + 1)
        s, row = _draw(s, decoder.logits(params, hidden), limit, drawing)
        if routed is not None and drawing.routes:
            row["experts"] = routed.experts[:, :, 0]
        put = {
            name: jax.lax.dynamic_update_index_in_dim(getattr(drawn, name), new, drawn.steps, 0)
            for name, new in row.items()
        }
        return s, Drawn(**put, steps=drawn.steps + 1, goes_on=s.member)

    state, drawn = jax.lax.while_loop(unfinished, step, (state, _nothing(steps, state)))
    return state, dataclasses.replace(drawn, read=state.read)


def _nothing(steps: int, state: Decoding) -> Drawn:
    read, shape = state.read, (steps, *state.member.shape)
    return Drawn(
        token=jnp.zeros(shape, jnp.int32),
        logp=jnp.zeros(shape, jnp.float32),
        member=jnp.full(shape, -1, jnp.int32),
        index=jnp.zeros(shape, jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        goes_on=state.member,
        experts=None if read is None else jnp.zeros((*shape, *read.shape[2:]), read.dtype),
    )


def admit(
    graphdef: nnx.GraphDef,
    params: PyTree,
    state: Decoding,
    prompts: Prompts,
    keys: Key[Array, "A G"],
    begin: Int[Array, " A"],
    until: Int[Array, " A"],
    lane: Int[Array, "R B"],
) -> Decoding:
    """Reads further prompts into lanes whose completions are done.

    Lanes are split over R devices, and so are the prompts: a lane takes a prompt of its own device.

    Args:
      graphdef: structure of the model.
      params: its weights.
      state: the lanes.
      prompts: A = R * B of them, device by device.
      keys: one key per completion of these.
      begin: number of the completion of each that its lane makes first.
      until: number of the one before which it stops.
      lane: the lane for each, counted within its device; out of range: the prompt is not taken.
    """
    as_int8 = isinstance(state.own, cache.KV) and state.own.is_int8
    new = _read(graphdef, params, prompts, as_int8, state.read is not None)
    new |= {"keys": keys, "until": until} | _fresh_slots(begin, state.member.shape[1])
    old = _of_lanes(state)

    def place(path: Sequence[object], whole: Array, fresh: Array) -> Array:
        stacked = isinstance(state.own, cache.KV) and jax.tree_util.GetAttrKey("kv") in path
        axis = 1 if stacked else 0  # layers lead
        split = partial(_split, axis=axis, parts=lane.shape[0])

        def on_device(whole: Array, fresh: Array, lane: Int[Array, " B"]) -> Array:
            for i in range(lane.shape[0]):
                # Not `.at[lane].set(mode="drop")`: jaxlib 0.10.2 let a lane out of range write.
                at = jnp.minimum(lane[i], whole.shape[axis] - 1)
                before = jax.lax.dynamic_slice_in_dim(whole, at, 1, axis)
                taken = lane[i] < whole.shape[axis]
                after = jnp.where(taken, jax.lax.slice_in_dim(fresh, i, i + 1, axis=axis), before)
                whole = jax.lax.dynamic_update_slice_in_dim(whole, after, at, axis)
            return whole

        placed = jax.vmap(on_device, (axis, axis, 0), axis)(split(whole), split(fresh), lane)
        return placed.reshape(whole.shape)

    return dataclasses.replace(state, **jax.tree_util.tree_map_with_path(place, old, new))


def resize(state: Decoding, width: int) -> Decoding:
    """Gives the rings `width` positions; the youngest entries stay, oldest first."""
    written = jnp.full((), min(cache.ring_width(state.own), width), jnp.int32)
    own = cache.resized(state.own, state.written, width)
    return dataclasses.replace(state, own=own, written=written)


def narrow(
    state: Decoding,
    lane: Int[Array, "R B"],
    slot: Int[Array, "R B T"],
    member: Int[Array, "R B T"],
) -> Decoding:
    """Goes on with some of the slots, in fewer lanes of fewer slots; lanes may be there twice.

    For the end of a rollout, when nothing is left to begin and most slots are idle.

    Args:
      state: the lanes, split over R devices.
      lane: which lane of the device each of the B new ones is made from.
      slot: which slots of that lane its T slots are.
      member: the completions they are at; from `until` on, the slot is idle.
    """
    parts, stacked = lane.shape[0], isinstance(state.own, cache.KV)

    def lanes(x: Array, axis: int = 0) -> Array:
        split = _split(x, axis, parts)
        found = jax.vmap(partial(jnp.take, axis=axis, mode="clip"), (axis, 0), axis)(split, lane)
        return found.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

    def slots(x: Array, axis: int = 0) -> Array:
        at = slot.reshape(-1, slot.shape[-1])
        return jax.vmap(partial(jnp.take, axis=axis, mode="clip"), (axis, 0), axis)(
            lanes(x, axis), at
        )

    prompt = dataclasses.replace(
        state.prompt,
        kv=jax.tree.map(partial(lanes, axis=1 if stacked else 0), state.prompt.kv),
        mask=lanes(state.prompt.mask),
        lengths=lanes(state.prompt.lengths),
    )
    return dataclasses.replace(
        state,
        prompt=prompt,
        **{name: lanes(getattr(state, name)) for name in ("first", "keys", "until", "handed")},
        read=None if state.read is None else lanes(state.read),
        own=cache.picked(state.own, state.member.shape, slots),
        token=slots(state.token),
        length=slots(state.length),
        member=member.reshape(-1, member.shape[-1]),
    )


def _read(
    graphdef: nnx.GraphDef, params: PyTree, prompts: Prompts, as_int8: bool, routes: bool
) -> dict[str, Any]:
    tokens, mask = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
    hidden, prompt = decoder.prefill(graphdef, params, tokens, mask)
    read = prompt.routed.experts if routes else None
    prompt = dataclasses.replace(prompt.as_int8() if as_int8 else prompt, routed=None)
    return {"prompt": prompt, "first": hidden[:, -1], "read": read}


def _fresh_slots(begin: Int[Array, " N"], slots: int) -> dict[str, Any]:
    """Slots that are about to begin the first completions of their lane."""
    zeros = jnp.zeros((begin.shape[0], slots), jnp.int32)
    return {
        "token": zeros,
        "length": zeros,
        "member": zeros + begin[:, None] + jnp.arange(slots)[None],
        "handed": begin + slots,
    }


def _of_lanes(state: Decoding) -> dict[str, PyTree]:
    """What a lane gets anew with a prompt; old entries of the rings are hidden by the length."""
    names = ("prompt", "first", "read", "keys", "until", "token", "length", "member", "handed")
    return {name: getattr(state, name) for name in names}


def _split(x: Array, axis: int, parts: int) -> Array:
    return x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])


def _by_member(table: Array, member: Int[Array, "N S"]) -> Array:
    """Looks up `table[n, member[n, s]]`; an idle slot gets some entry of its lane."""
    return jax.vmap(lambda row, at: row[jnp.minimum(at, row.shape[0] - 1)])(table, member)


def _draw(
    state: Decoding, logits: Float32[Array, "N S V"], limit: Int[Array, " N"], drawing: Drawing
) -> tuple[Decoding, dict[str, Array]]:
    """Draws the next token of every slot and hands out what comes after completions that end."""
    flat_keys = _by_member(state.keys, state.member).reshape(-1)
    uniform = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))(
        flat_keys, state.length.reshape(-1)
    )
    token, logp = draw(logits.reshape(-1, logits.shape[-1]), uniform, drawing.sampling)
    token = token.astype(jnp.int32).reshape(state.member.shape)
    row = {
        "token": token,
        "logp": logp.reshape(token.shape),
        "member": jnp.where(state.active, state.member, -1),
        "index": state.length,
    }
    length = state.length + 1
    ended = state.active & (length >= limit[:, None])
    for eos in drawing.eos_ids:
        ended |= state.active & (token == eos)
    return _hand_out(dataclasses.replace(state, token=token, length=length), ended), row


def _hand_out(state: Decoding, ended: Bool[Array, "N S"]) -> Decoding:
    """Gives slots whose completion has ended the next ones of their lane, in order of slots."""
    rank = jnp.cumsum(ended, axis=1, dtype=jnp.int32)
    member = jnp.where(ended, state.handed[:, None] + rank - 1, state.member)
    state = dataclasses.replace(state, member=member, handed=state.handed + rank[:, -1])
    length = jnp.where(state.active & ~ended, state.length, 0)
    return dataclasses.replace(state, length=length)
