"""The engine: drives the compiled decode loop from the host and returns finished rollouts.

Between compiled calls it does what a compiled call cannot: stop early when all completions have
ended, widen the cache, and look for stop strings in the decoded text.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, PyTree
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from jgrpo.buckets import bucket
from jgrpo.keys import sequence_keys
from jgrpo.parallel.rules import data_sharding, data_size
from jgrpo.rollout import decode
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Prompts, Rollouts

_start = partial(jax.jit, static_argnums=0, static_argnames=("width", "sampling"))(decode.start)
_advance = partial(jax.jit, static_argnums=0, static_argnames="sampling", donate_argnums=2)(
    decode.advance
)
_widen = jax.jit(decode.widen, static_argnames="width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What sampling needs besides weights and prompts.

    Attributes:
      graphdef: structure of the model.
      mesh: devices; prompts are split over its data axes.
      tokenizer: for stop strings.
      eos_ids: tokens that end a completion.
      dtype: precision the weights are cast to once per call.
      chunk_tokens: decode steps per compiled call.
    """

    graphdef: nnx.GraphDef
    mesh: Mesh
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    dtype: str = "float32"
    chunk_tokens: int = 16

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
        on_finished: Callable[[int, list[int]], None] | None = None,
    ) -> Rollouts:
        """Samples `group_size` completions of every prompt.

        A completion depends on the weights, its prompt and `key`, the prompt's uid and its place in
        the group, and on nothing else: not on the other rows, the chunk size or the devices (but
        for the order of float reductions in the logits).

        Args:
          params: the policy's weights.
          prompts: what is asked; any number of rows.
          key: the key of this rollout.
          group_size: completions per prompt.
          max_tokens: longest completion, EOS included.
          sampling: temperature and filters.
          stop: strings that end a completion; the token that completes one is its last.
          on_finished: called with the number of a completion (group by group) and its tokens when
            it has ended and others have not, while these are decoded on. What is still running
            when the last chunk begins is not reported.

        Returns:
          Numpy records, cut to the bucket of the longest completion.
        """
        rows = prompts.uid.shape[0]
        asked = _pad_rows(prompts, -rows % data_size(self.mesh))
        keys = sequence_keys(key, asked.uid, group_size)
        asked, keys = jax.device_put((asked, keys), data_sharding(self.mesh))
        if self.dtype != "float32":
            params = _to_dtype(params, self.dtype)
        state = _start(
            self.graphdef,
            params,
            asked,
            keys,
            width=bucket(min(self.chunk_tokens, max_tokens), self.chunk_tokens),
            sampling=sampling,
        )
        state, ends = self._decode(params, state, rows, max_tokens, sampling, stop, on_finished)
        tokens, logp = jax.device_get((state.tokens, state.logp))
        return _finish(prompts, tokens[:rows], logp[:rows], ends, max_tokens)

    def _decode(
        self,
        params: PyTree,
        state: decode.Decoding,
        rows: int,
        max_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...],
        on_finished: Callable[[int, list[int]], None] | None,
    ) -> tuple[decode.Decoding, Int[ndarray, "P G"]]:
        """Runs chunks until the first `rows` have ended; returns where each ended (0: did not)."""
        length = 1
        ends = np.zeros((rows, state.keys.shape[1]), np.int64)
        while True:
            before, ends = ends, np.zeros_like(ends)
            # The first token alone is not looked at: the host would wait for it.
            if stop or length >= min(self.chunk_tokens, max_tokens):
                ends = self._ends(np.asarray(state.tokens)[:rows, :, :length], stop)
            if length >= max_tokens or (ends > 0).all():
                return state, ends
            # Read before the next chunk takes the buffers, reported while it runs.
            finished = _finished(state, before, ends) if on_finished is not None else []
            step = min(self.chunk_tokens - length % self.chunk_tokens, max_tokens - length)
            width = bucket(length + step, self.chunk_tokens)
            if width > state.tokens.shape[-1]:
                state = _widen(state, width=width)
            state = _advance(
                self.graphdef,
                params,
                state,
                num_tokens=jnp.asarray(step),
                sampling=sampling,
            )
            length += step
            if on_finished is not None:
                for row, tokens in finished:
                    on_finished(row, tokens)

    def _ends(self, tokens: Int[ndarray, "P G T"], stop: tuple[str, ...]) -> Int[ndarray, "P G"]:
        """Number of tokens up to and with the EOS or the stop string of each completion, or 0."""
        is_eos = np.isin(tokens, self.eos_ids)
        ends = np.where(is_eos.any(-1), is_eos.argmax(-1) + 1, 0)
        for row in np.ndindex(*ends.shape) if stop else ():
            cut = self._stop_end(tokens[row][: ends[row] or None], stop)
            ends[row] = cut or ends[row]
        return ends

    def _stop_end(self, tokens: Int[ndarray, " T"], stop: tuple[str, ...]) -> int:
        """Fewest tokens whose text contains a stop string, or 0."""
        contains = lambda n: any(s in self.tokenizer.decode(tokens[:n]) for s in stop)  # noqa: E731
        if not contains(len(tokens)):
            return 0
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if contains(middle) else (middle + 1, high)
        return low


def _finished(
    state: decode.Decoding, before: Int[ndarray, "P G"], ends: Int[ndarray, "P G"]
) -> list[tuple[int, list[int]]]:
    """Number and tokens of each completion that has ended since `before`."""
    fresh = np.argwhere((ends > 0) & (before == 0)).tolist()
    tokens = np.asarray(state.tokens) if fresh else ()
    return [(p * ends.shape[1] + g, tokens[p][g][: ends[p, g]].tolist()) for p, g in fresh]


@partial(jax.jit, static_argnums=1)
def _to_dtype(params: PyTree, dtype: str) -> PyTree:
    """Casts what the model would cast on use; the scales of norms it multiplies in float32."""

    def cast(path: tuple[Any, ...], x: Array) -> Array:
        return x if path[-1].key.endswith("norm") else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _pad_rows(prompts: Prompts, more: int) -> Prompts:
    """Adds rows without a token, so that every device has as many prompts."""
    grow = lambda x: np.pad(np.asarray(x), [(0, more)] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
    return jax.tree.map(grow, prompts)


def _finish(
    prompts: Prompts,
    tokens: Int[ndarray, "P G W"],
    logp: ndarray,
    ends: Int[ndarray, "P G"],
    max_tokens: int,
) -> Rollouts:
    """Turns where completions ended into masks, and cuts to the bucket of the longest."""
    lengths = np.where(ends > 0, ends, min(max_tokens, tokens.shape[-1]))
    width = min(bucket(int(lengths.max(initial=1))), tokens.shape[-1])
    mask: Bool[ndarray, "P G W"] = np.arange(width) < lengths[..., None]
    return Rollouts(
        prompts=prompts,
        tokens=tokens[..., :width],
        mask=mask,
        behavior_logp=np.where(mask, logp[..., :width], 0.0).astype(np.float32),
        finished=ends > 0,
    )
