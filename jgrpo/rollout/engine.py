"""The engine: drives the compiled decode loop from the host and returns finished rollouts.

Between compiled calls it does what a compiled call cannot: fill lanes with the next prompts and
change the width of the rings. What stands where is written in `rollout.work`.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, Key, PyTree
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from jgrpo.models import cache, stack
from jgrpo.models.int8 import Int8, Precision, quantize_params
from jgrpo.models.lora import Quantized, joined
from jgrpo.parallel.lowered import Compile, compile_now, described, with_shardings
from jgrpo.parallel.rules import replicated, whole_over_fsdp
from jgrpo.rollout import decode
from jgrpo.rollout.decode import Drawing
from jgrpo.rollout.meter import Meter
from jgrpo.rollout.sample import Sampling
from jgrpo.rollout.work import Ends, Work, ring_widths
from jgrpo.types import Prompts, Rollouts

OnFinished = Callable[[int, list[int]], None]

# Calls that must possibly follow for narrower slots to be worth a program.
_WORTH_CALLS = 4


def _called(function: Any, *args: Any) -> Any:
    return function(*args)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What sampling needs besides weights and prompts.

    Attributes:
      graphdef: structure of the model.
      mesh: devices; lanes are split over its data axes.
      tokenizer: for stop strings; None where programs are compiled and nothing is drawn.
      eos_ids: tokens that end a completion.
      dtype: precision the weights are cast to once per call, and of activations.
      chunk_tokens: decode steps per compiled call.
      slots: completions in the making at once, over all devices; 0: all.
      weights: precision of the matrices: `dtype`, or int8 with a scale per output.
      kv: precision of keys and values: `dtype`, or int8 with a scale per token and head.
      unstack: loop over the layers in place of a scan (`stack.unstacked`), if nothing is int8.
      gather: put the weights that the axis `fsdp` splits together before sampling, so that every
        device has all that the other axes leave it; else XLA does so for every token.
      narrow: go on with fewer slots when three quarters of them have nothing left to do. It costs
        programs, and pays where a step takes as long as it has rows.
      few: run few programs, for calls whose numbers of prompts differ: lanes in powers of two,
        rings of their last width from the start, and no narrowing.
      frozen: weights beside which those of each call are adapters (`models.lora`), on the mesh.
      turn: held while programs run, where other threads run some too.
      routes: note the experts that each token took, for a learner that is to take them again.
    """

    graphdef: nnx.GraphDef
    mesh: Mesh
    tokenizer: PreTrainedTokenizerBase | None
    eos_ids: tuple[int, ...]
    dtype: str = "float32"
    chunk_tokens: int = 16
    slots: int = 0
    weights: Precision = "model"
    kv: Precision = "model"
    unstack: bool = dataclasses.field(default_factory=lambda: jax.default_backend() == "cpu")
    gather: bool = True
    narrow: bool = dataclasses.field(default_factory=lambda: jax.default_backend() == "cpu")
    few: bool = False
    frozen: PyTree = dataclasses.field(default=None, compare=False)
    turn: AbstractContextManager[Any] = dataclasses.field(default_factory=nullcontext)
    routes: bool = False

    def generate(
        self,
        params: PyTree,
        prompts: Prompts,
        key: Key[Array, ""],
        *,
        group_size: int,
        max_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...] = (),
        counts: Int[ndarray, " P"] | None = None,
        first: Int[ndarray, " P"] | None = None,
        limits: Int[ndarray, " P"] | None = None,
        on_finished: OnFinished | None = None,
        meter: Meter | None = None,
        check: Callable[[], None] | None = None,
    ) -> Rollouts:
        """Samples `group_size` completions of every prompt.

        A completion depends on the weights, its prompt and `key`, the prompt's uid and its place in
        the group, and on nothing else: not on the other rows, the slots, the chunk size or the
        devices (but for the order of float reductions in the logits).

        Args:
          params: the policy's weights.
          prompts: what is asked; any number of rows.
          key: the key of this rollout.
          group_size: completions per prompt.
          max_tokens: longest completion, EOS included.
          sampling: temperature and filters.
          stop: strings that end a completion; the token that completes one is its last.
          counts: completions wanted of each prompt, at most `group_size`; the others stay empty.
            None: `group_size` of all.
          first: number under which each prompt's first completion draws its noise; None: 0.
          limits: longest completion of each prompt, at most `max_tokens`; None: that.
          on_finished: called with the number of a completion (group by group) and its tokens when
            it has ended and others have not, while these are decoded on. What is still running
            when the last call begins is not reported.
          meter: adds up what it costs.
          check: called before each compiled call; may raise to give up.

        Returns:
          Numpy records, cut to the bucket of the longest completion.
        """
        meter = Meter() if meter is None else meter
        each = {"wanted": counts, "first": first, "limits": limits}
        work = self._work(prompts, key, group_size, max_tokens, stop, **each)
        report, check = on_finished or (lambda row, tokens: None), check or (lambda: None)
        self._decode(self._prepared(params), work, self._drawing(sampling), meter, report, check)
        return work.rollouts()

    def compile_ahead(
        self,
        params: PyTree,
        prompts: Prompts,
        *,
        group_size: int,
        max_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...] = (),
        compiled: Compile = compile_now,
        every_width: bool = True,
    ) -> None:
        """Compiles what `generate` may run for prompts of this shape, at every width of the rings.

        Args:
          params: the policy's weights, or their shapes.
          prompts: as many as will be asked, in their bucket.
          group_size: completions per prompt.
          max_tokens: longest completion, EOS included.
          sampling: temperature and filters.
          stop: strings that end a completion.
          compiled: compiles each, by the name of its function.
          every_width: decode at every width of the rings; else at the last alone.
        """

        def results(function: Any, *args: Any, **options: Any) -> PyTree:
            """What the program would return, as shapes with shardings."""
            lowered = function.lower(*args, **options)
            shardings = compiled(function.__name__, lowered).output_shardings
            return with_shardings(lowered.out_info, shardings)

        params, closed = self._prepared(params, results), self._closed_over(self._drawing(sampling))
        ask = (prompts, jax.random.key(0), group_size, max_tokens, stop)
        work, chunk = self._work(*ask, place=described), self.chunk_tokens
        width, read = work.width(chunk), work.all_lanes()
        shape = {"slots": work.slots, "width": width, "kv": self.kv}
        state, _ = results(_start, self.graphdef, params, *read, **shape, **closed)
        orders = (*work.orders_of_lanes(), work.stopped())
        widths = ring_widths(max_tokens, chunk)
        for width in widths:
            if width > cache.ring_width(state.own):
                state = results(_resize, state, width=width)
            if not every_width and width < widths[-1]:
                continue
            for _ in range(2):  # its own result may be laid out otherwise than that of `_start`
                given = (self.graphdef, params, state, *orders)
                state, _ = results(_advance, *given, steps=chunk, **closed)
            for size in work.sizes_of_calls if self.slots else ():
                lanes = np.zeros((work.shards, size), np.int64)
                state = results(_admit, self.graphdef, params, state, *work.of_lanes(lanes), lanes)

    def _prepared(self, params: PyTree, call: Callable[..., PyTree] = _called) -> PyTree:
        """The weights as the compiled programs take them."""
        params = joined(self.frozen, params)
        if self.dtype != "float32" or self.weights != "model":
            params = call(_for_sampling, params, self.dtype, self.weights)
        if self.gather and self.mesh.shape["fsdp"] > 1:
            params = call(_gathered, params, whole_over_fsdp(params, self.mesh))
        if self.unstack and self.weights == self.kv == "model":
            params = call(_unstacked, params)
        return params

    def _drawing(self, sampling: Sampling) -> Drawing:
        return Drawing(sampling=sampling, eos_ids=self.eos_ids, routes=self.routes)

    def _closed_over(self, drawing: Drawing) -> dict[str, Any]:
        return {"drawing": drawing, "mesh": self.mesh}

    def _work(
        self,
        prompts: Prompts,
        key: Key[Array, ""],
        group_size: int,
        max_tokens: int,
        stop: tuple[str, ...],
        **each: Any,
    ) -> Work:
        return Work(
            jax.tree.map(np.asarray, prompts),
            key,
            **each,
            group_size=group_size,
            max_tokens=max_tokens,
            slots=self.slots,
            ends=Ends(self.eos_ids, stop, self.tokenizer),
            mesh=self.mesh,
            few=self.few,
        )

    def _decode(
        self,
        params: PyTree,
        work: Work,
        drawing: Drawing,
        meter: Meter,
        on_finished: OnFinished,
        check: Callable[[], None],
    ) -> None:
        """Draws until the work is done."""
        closed = self._closed_over(drawing)
        chunk = self.chunk_tokens
        width = work.width(chunk)
        check()
        with self.turn, meter.timed("prefill_s"):
            prompts = work.all_lanes()
            shape = {"slots": work.slots, "width": width, "kv": self.kv}
            state, drawn = _start(self.graphdef, params, *prompts, **shape, **closed)
            jax.block_until_ready(drawn)
        while True:
            with meter.timed("host_s"):
                finished = work.note(drawn, meter)
            if work.done:
                return
            check()
            with self.turn, meter.timed("decode_s"):
                for lanes in work.assign():
                    state = _admit(self.graphdef, params, state, *work.of_lanes(lanes), lanes)
                if self.narrow and not self.few:
                    places = work.narrow(drawn, _WORTH_CALLS * chunk)
                    state = state if places is None else _narrow(state, *places)
                if (needed := work.width(chunk)) > width or needed <= width // 2:
                    state, width = _resize(state, width=needed), needed
                orders = (*work.orders_of_lanes(), work.stopped())
                given = (self.graphdef, params, state, *orders)
                state, drawn = _advance(*given, steps=chunk, **closed)
                for row, tokens in finished:
                    on_finished(row, tokens)
                jax.block_until_ready(drawn)


def _placing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with rings split, and what was drawn on every device: each host can read it."""

    def run(*args: Any, mesh: Mesh, **options: Any) -> Any:
        state, drawn = function(*args, **options)
        state = dataclasses.replace(state, own=cache.placed_rings(state.own, mesh))
        return state, jax.lax.with_sharding_constraint(drawn, replicated(mesh))

    run.__name__ = function.__name__  # what a profile calls the program
    return run


_start = partial(
    jax.jit, static_argnums=0, static_argnames=("slots", "width", "kv", "drawing", "mesh")
)(_placing(decode.start))
_advance = partial(
    jax.jit, static_argnums=0, static_argnames=("steps", "drawing", "mesh"), donate_argnums=2
)(_placing(decode.advance))
_admit = partial(jax.jit, static_argnums=0, donate_argnums=2)(decode.admit)
_resize = jax.jit(decode.resize, static_argnames="width")
_narrow = jax.jit(decode.narrow)


_unstacked = jax.jit(stack.unstacked)


@partial(jax.jit, static_argnums=1)
def _gathered(params: PyTree, at: tuple[NamedSharding, ...]) -> PyTree:
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, map(jax.lax.with_sharding_constraint, leaves, at))


@partial(jax.jit, static_argnums=(1, 2))
def _for_sampling(params: PyTree, dtype: str, weights: Precision) -> PyTree:
    """Casts what the model would cast on use; the scales of norms it multiplies in float32."""
    if weights == "int8":
        params = quantize_params(params)

    def cast(path: tuple[Any, ...], x: Array | Int8 | Quantized) -> Array | Int8 | Quantized:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if isinstance(x, Int8 | Quantized) or name.endswith("norm"):
            return x
        return x.astype(dtype)

    is_small = lambda x: isinstance(x, Int8 | Quantized)  # noqa: E731
    return jax.tree_util.tree_map_with_path(cast, params, is_leaf=is_small)
