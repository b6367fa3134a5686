"""Splash attention of JAX's Pallas library, for TPU: prompts, and groups of completions after one.

The kernel keeps no scores in memory and skips blocks of keys that no query of a block sees, so that
the completions of a group cost their own blocks and the prompt's, not each other's.

Letters: P prompts, G completions per prompt, T positions, Lp prompt positions, H query heads,
K key/value heads, E head width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float

OverDevices = Callable[..., Array]

_LANES = 128
_LARGEST_BLOCK = 512


def grouped(
    q: Float[Array, "P G T H E"],
    k: Float[Array, "P G K T E"],
    v: Float[Array, "P G K T E"],
    prompt: tuple[Float[Array, "P K Lp E"], Float[Array, "P K Lp E"]] | None,
    mask: Bool[Array, "P L"],
    *,
    over_devices: OverDevices,
    interpret: bool,
) -> Float[Array, "P G T H E"]:
    """One call a prompt: the tokens of its G completions are queries of one sequence of keys.

    The keys are the prompt's and then those of all completions. Differentiable in q, k, v and
    prompt.

    Args:
      q: queries.
      k: keys of the completions.
      v: values of the completions.
      prompt: keys and values of the prompt; None: the one completion is a prompt itself.
      mask: True at real tokens, of the prompt if there is one, else of the one completion.
      over_devices: (function, arrays) -> the function over the devices that hold the prompts, and
        over those that hold the heads.
      interpret: run by Pallas' interpreter, on any platform and slowly.
    """
    P, G, T, H, E = q.shape
    rows = (q * E**-0.5).transpose(0, 3, 1, 2, 4).reshape(P, H, G * T, E)
    keys, values = (x.swapaxes(1, 2).reshape(P, x.shape[2], G * T, E) for x in (k, v))
    # Queries and keys see each other if their segments are equal: 1 is real, 0 is padding.
    segment = mask.astype(jnp.int32)
    length, own = 0, segment
    if prompt is not None:
        length, own = prompt[0].shape[2], jnp.ones((P, G * T), jnp.int32)
        keys = jnp.concatenate([prompt[0], keys], axis=2)
        values = jnp.concatenate([prompt[1], values], axis=2)
        segment = jnp.concatenate([segment, own], axis=1)
    block_q, block_kv = _block(G * T), _block(length + G * T)
    tree = Tree.padded(prompt=length, completion=T, rows=G * T, blocks=(block_q, block_kv))

    def call(q: Array, k: Array, v: Array, queries: Array, keys: Array) -> Array:
        kernel = _kernel(tree, q.shape[1], block_q, block_kv, interpret)
        one = lambda q, k, v, a, b: kernel(q, k, v, splash_attention.SegmentIds(a, b))  # noqa: E731
        mixed = jax.vmap(one)(q, k, v, queries, keys)
        assert isinstance(mixed, jax.Array)  # it gives residuals too if they are asked
        return mixed

    mixed = over_devices(
        call,
        _filled_up(rows, 2, tree.shape[0]),
        _filled_up(keys, 2, tree.shape[1]),
        _filled_up(values, 2, tree.shape[1]),
        _filled_up(own, 1, tree.shape[0]),
        _filled_up(segment, 1, tree.shape[1]),
    )
    return mixed[:, :, : G * T].reshape(P, H, G, T, E).transpose(0, 2, 3, 1, 4)


class Tree(splash_attention.Mask):
    """Who sees whom: a prompt, and completions that see it and themselves; computed, not stored.

    Key positions are those of the prompt and then of the completions, one after the other. The
    number of a query holds its completion and its place there in separate bits, since the kernel
    hands the function nothing else of it.

    Attributes:
      q_sequence: numbers of the queries.
      mask_function: (numbers of queries, positions of keys) -> True where one sees the other.
    """

    def __init__(self, prompt: int, completion: int, shape: tuple[int, int]):
        bits = max(completion - 1, 1).bit_length()
        place = (1 << bits) - 1
        member, offset = np.divmod(np.arange(shape[0]), completion)
        self._facts = (prompt, completion, shape)
        self.q_sequence = ((member << bits) | offset).astype(np.int32)

        def sees(query, key):
            first = prompt + (query >> bits) * completion
            return (key < prompt) | ((key >= first) & (key <= first + (query & place)))

        self.mask_function = sees

    @classmethod
    def padded(cls, *, prompt: int, completion: int, rows: int, blocks: tuple[int, int]) -> "Tree":
        """For `rows` queries and `prompt + rows` keys, rounded up to whole blocks."""
        sizes = (rows, prompt + rows)
        shape = tuple(-(-n // block) * block for n, block in zip(sizes, blocks, strict=True))
        return cls(prompt, completion, (shape[0], shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys, in whole blocks."""
        return self._facts[2]

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = index
        prompt, completion, _ = self._facts
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        begin = prompt + top // completion * completion
        end = prompt + -(-bottom // completion) * completion
        # Nearly all blocks of a long group are one of these two: they need no computing.
        if right <= prompt:
            return np.broadcast_to(np.True_, (bottom - top, right - left))
        if left >= end or prompt <= left < right <= begin:
            return np.broadcast_to(np.False_, (bottom - top, right - left))
        return self.mask_function(
            self.q_sequence[rows][:, None], np.arange(self.shape[1])[columns][None]
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash(self._facts)


@functools.lru_cache(maxsize=64)
def _kernel(tree: Tree, heads: int, block_q: int, block_kv: int, interpret: bool):
    """The kernel with its table of blocks, which takes a second to make for long groups."""
    sizes = splash_attention.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    # Kept from one trace to the next, so that its arrays must not belong to any.
    with jax.ensure_compile_time_eval():
        return splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([tree] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )


def _block(length: int) -> int:
    """The largest block that at most an eighth of a sequence must be filled up for."""
    for block in (_LARGEST_BLOCK, _LARGEST_BLOCK // 2):
        if -length % block <= length // 8:
            return block
    return _LANES


def _filled_up(x: Array, axis: int, size: int) -> Array:
    """The array with zeros behind it along one axis."""
    return jnp.pad(x, [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)])
