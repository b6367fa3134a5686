"""The kernels that compute the attention of prompts and of whole completions.

`layers.attend` is the definition and runs everywhere (`xla`). On TPU `splash` is the kernel of
`jax.experimental.pallas.ops.tpu`, which keeps no scores and skips masked blocks; on GPU `cudnn` is
NVIDIA's. Decoding, one token of every completion at a time, always runs `layers.attend`.

Letters: P prompts, G completions per prompt, T positions, Lp prompt positions, S key positions,
H query heads, K key/value heads, E head width.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from jgrpo.models.layers import attend
from jgrpo.parallel.rules import LOGICAL_TO_MESH, free_axes, free_data_axes, over_free_axes
from jgrpo.types import AnyArray

Kernel: TypeAlias = Literal["xla", "splash", "cudnn"]
Prefix: TypeAlias = tuple[
    Float[Array, "P K Lp E"], Float[Array, "P K Lp E"], Bool[AnyArray, "P Lp"]
]

# Widths that Mosaic compiles for v5e, forward and backward (tests/contract/test_tpu_programs.py).
_SPLASH_HEAD = 64
_CUDNN_HEAD = 8
_CUDNN_LARGEST_HEAD = 128


def choose(wanted: str, *, platform: str, dtype: str, head_width: int) -> Kernel:
    """The kernel for a model on a kind of device.

    Args:
      wanted: `model.attention`; "auto" takes the platform's own kernel where it can, else `xla`.
      platform: "cpu", "gpu" or "tpu".
      dtype: precision of activations.
      head_width: E.

    Raises:
      ValueError: if a kernel is asked for by name that cannot run; says why.
    """
    reasons: dict[Kernel, str] = {
        "splash": _reason(
            (platform == "tpu", f"runs on TPU, not on {platform}"),
            (
                head_width % _SPLASH_HEAD == 0,
                f"needs a head width that {_SPLASH_HEAD} divides, the model's is {head_width}",
            ),
        ),
        "cudnn": _reason(
            (platform == "gpu", f"runs on GPU, not on {platform}"),
            (dtype == "bfloat16", f"needs model.dtype 'bfloat16', got {dtype!r}"),
            (
                head_width % _CUDNN_HEAD == 0 and head_width <= _CUDNN_LARGEST_HEAD,
                f"needs a head width that {_CUDNN_HEAD} divides, at most {_CUDNN_LARGEST_HEAD}; "
                f"the model's is {head_width}",
            ),
        ),
        "xla": "",
    }
    if wanted == "auto":
        return next(name for name, reason in reasons.items() if not reason)
    for name, reason in reasons.items():
        if name == wanted and reason:
            raise ValueError(f"model.attention: '{name}' {reason}; use 'auto' or 'xla'")
        if name == wanted:
            return name
    raise ValueError(f"model.attention must be one of auto, {', '.join(reasons)}, got {wanted!r}")


def _reason(*rules: tuple[bool, str]) -> str:
    return next((reason for holds, reason in rules if not holds), "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Which kernel, and where; static, a part of the model's structure.

    All kernels give the values and gradients of `layers.attend` up to rounding, but for queries at
    padding, which have no meaning.

    Attributes:
      kernel: from `choose`.
      mesh: devices over whose data axes prompts are split; None: one device. XLA cannot split a
        TPU kernel, so that this module does.
      interpret: run `splash` by Pallas' interpreter, on any platform and slowly.
    """

    kernel: Kernel = "xla"
    mesh: Mesh | None = None
    interpret: bool = False

    def prompts(
        self,
        q: Float[Array, "P 1 T H E"],
        k: Float[Array, "P 1 K T E"],
        v: Float[Array, "P 1 K T E"],
        mask: Bool[AnyArray, "P T"],
    ) -> Float[Array, "P 1 T H E"]:
        """Every token sees the real tokens up to itself.

        Args:
          q: queries.
          k: keys, heads before positions.
          v: values likewise.
          mask: True at real tokens, which stand on the right.
        """
        mask = jnp.asarray(mask)
        if self.kernel == "splash":
            return self._splash(q, k, v, None, mask)
        visible = jnp.tril(jnp.ones((q.shape[2],) * 2, bool))[None, None] & mask[:, None, None]
        if self.kernel == "cudnn":
            return fused_rows(q, k, v, visible, implementation="cudnn")
        return self.plain(q, k, v, visible)

    def completions(
        self,
        q: Float[Array, "P G T H E"],
        k: Float[Array, "P G K T E"],
        v: Float[Array, "P G K T E"],
        prompt: Prefix,
    ) -> Float[Array, "P G T H E"]:
        """Every token sees the real tokens of its prompt, and its completion up to itself.

        Rows that hold several completions have masks that only the data know; they are for
        `layers.attend`, since splash would keep such a mask in memory whole.

        Args:
          q: queries.
          k: keys of the completions, heads before positions.
          v: values likewise.
          prompt: keys, values and mask that the group shares.
        """
        if self.kernel == "splash":
            return self._splash(q, k, v, (prompt[0], prompt[1]), jnp.asarray(prompt[2]))
        T = q.shape[2]
        visible = jnp.tril(jnp.ones((T, T), bool))
        if self.kernel == "cudnn":
            return fused_rows(q, *with_prompt(k, v, visible, prompt), implementation="cudnn")
        return self.plain(q, k, v, visible, prompt)

    def plain(
        self,
        q: Float[Array, "P G T H E"],
        k: Float[Array, "P G K S E"] | Float[Array, "P G K E S"],
        v: Float[Array, "P G K S E"],
        visible: Bool[Array, "T S"] | Bool[Array, "P 1 T S"] | Bool[Array, "P G T S"],
        prefix: Prefix | None = None,
        *,
        positions_last: bool = False,
    ) -> Float[Array, "P G T H E"]:
        """`layers.attend`, of which each device computes its heads.

        Left to XLA, the products would bring all heads together: they merge the leading dims.
        """
        function = partial(attend, positions_last=positions_last)
        shared = None if prefix is None else (prefix[0], prefix[1], jnp.asarray(prefix[2]))
        by_prompt, by_head = self._axes(q.shape[0], k.shape[2])
        if self.mesh is None or not by_head:
            return function(q, k, v, visible, shared)
        of_all = PartitionSpec(by_prompt)
        mask = of_all if visible.ndim == 4 and visible.shape[0] > 1 else PartitionSpec()
        rows = PartitionSpec(by_prompt, None, by_head)
        keys = PartitionSpec(by_prompt, by_head)
        queries = PartitionSpec(by_prompt, None, None, by_head)
        of_prefix = None if prefix is None else (keys, keys, of_all)
        specs = (queries, rows, rows, mask, of_prefix)
        return over_free_axes(self.mesh, function, specs, queries)(q, k, v, visible, shared)

    def _axes(self, prompts: int, heads: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Mesh axes that are still XLA's and split these prompts and heads; those that divide."""
        if self.mesh is None or self.mesh.size == 1:
            return (), ()
        axis = LOGICAL_TO_MESH["heads"]
        size = self.mesh.shape[axis]
        splits = size > 1 and heads % size == 0 and axis in free_axes(self.mesh)
        return free_data_axes(self.mesh, prompts), (axis,) if splits else ()

    def _splash(
        self,
        q: Float[Array, "P G T H E"],
        k: Float[Array, "P G K T E"],
        v: Float[Array, "P G K T E"],
        prompt: tuple[Float[Array, "P K Lp E"], Float[Array, "P K Lp E"]] | None,
        mask: Bool[Array, "P L"],
    ) -> Float[Array, "P G T H E"]:
        # Pallas' TPU library is imported where it is used: half a second elsewhere.
        from jgrpo.models import splash

        return splash.grouped(
            q, k, v, prompt, mask, over_devices=self._over_devices, interpret=self.interpret
        )

    def _over_devices(self, function: Callable[..., Array], *args: Array) -> Array:
        """Maps over the mesh axes that are still XLA's; what they do not divide stays whole.

        Prompts lead all arrays; in those of four dims heads follow. Inside the learner's own map
        over replicas only the other axes are left.
        """
        if self.mesh is None or self.mesh.size == 1 or not free_axes(self.mesh):
            return function(*args)
        heads = math.gcd(*(x.shape[1] for x in args if x.ndim == 4))
        by_prompt, by_head = self._axes(args[0].shape[0], heads)
        spec = lambda x: PartitionSpec(by_prompt, by_head if x.ndim == 4 else ())  # noqa: E731
        return over_free_axes(self.mesh, function, tuple(map(spec, args)), spec(args[0]))(*args)


XLA = Attention()
"""Plain XLA, on any device."""


def with_prompt(
    k: Float[Array, "P G K T E"],
    v: Float[Array, "P G K T E"],
    visible: Bool[Array, "T T"],
    prompt: Prefix,
) -> tuple[Float[Array, "P G K S E"], Float[Array, "P G K S E"], Bool[Array, "P 1 T S"]]:
    """Keys and values of each row behind a copy of its prompt's, and what a token sees of both."""
    P, G, K, T, E = k.shape
    *shared, mask = prompt
    both = [
        jnp.concatenate([jnp.broadcast_to(x[:, None], (P, G, K, x.shape[2], E)), own], axis=3)
        for x, own in zip(shared, (k, v), strict=True)
    ]
    of_prompt = jnp.broadcast_to(jnp.asarray(mask)[:, None, None], (P, 1, T, mask.shape[1]))
    sees = jnp.concatenate([of_prompt, jnp.broadcast_to(visible[None, None], (P, 1, T, T))], axis=3)
    return both[0], both[1], sees


def fused_rows(
    q: Float[Array, "P G T H E"],
    k: Float[Array, "P G K S E"],
    v: Float[Array, "P G K S E"],
    visible: Bool[Array, "P 1 T S"],
    *,
    implementation: Literal["cudnn", "xla"],
) -> Float[Array, "P G T H E"]:
    """Attention of plain rows by `jax.nn.dot_product_attention`.

    Args:
      q: queries.
      k: keys.
      v: values.
      visible: True where a query sees a key.
      implementation: of that function; `xla` defines what `cudnn` computes.
    """
    P, G = q.shape[:2]
    flat = lambda x: x.reshape(P * G, *x.shape[2:])  # noqa: E731
    mask = jnp.broadcast_to(visible, (P, G, *visible.shape[2:]))
    mixed = jax.nn.dot_product_attention(
        flat(q),
        flat(k).swapaxes(1, 2),
        flat(v).swapaxes(1, 2),
        mask=flat(mask)[:, None],
        scale=q.shape[-1] ** -0.5,
        implementation=implementation,
    )
    return mixed.reshape(q.shape)
