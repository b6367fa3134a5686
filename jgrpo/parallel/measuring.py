"""What the chips of a program can do: memory, multiplication, sums over all of them.

Each measurement also compares its result with one that is known exactly, since a broken chip may be
as fast as any. Letters: N devices.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, UInt8
from numpy import ndarray

_CALLS = 3
_AXIS = "all"
_PERIOD = 7  # elements of the summed vector differ, so that misplaced ones are seen
_RANKS = 64  # float32 holds the sums of so small summands exactly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; ASSUMED: enough to hide the cost of a call, and done in a second.

    Attributes:
      copy: floats that the memory test reads and writes: far more than on-chip memory holds.
      matmul: rows and columns of the matrices that are multiplied.
      reduce: floats that every device contributes to a sum.
      times: how often each is done in one call.
    """

    copy: int
    matmul: int
    reduce: int
    times: int


CPU = Sizes(copy=2**21, matmul=256, reduce=2**18, times=4)
ACCELERATOR = Sizes(copy=2**27, matmul=8192, reduce=2**24, times=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """One measurement.

    Attributes:
      value: the rate; its unit is the function's.
      wrong: elements of the result that are not what they must be.
    """

    value: float
    wrong: int


def sizes(platform: str) -> Sizes:
    """What is measured on a platform of jax, such as `tpu`."""
    return CPU if platform == "cpu" else ACCELERATOR


def memory_rate(device: Any, size: Sizes) -> Rate:
    """Gigabytes that one device reads and writes in a second."""
    x = jnp.zeros(size.copy, jnp.float32, device=device)
    seconds, y = _timed(functools.partial(_add_one, times=size.times), x)
    moved = 2 * x.nbytes * size.times
    return Rate(value=moved / seconds / 1e9, wrong=int(_unlike(y, jnp.float32(size.times))))


def matmul_rate(device: Any, size: Sizes) -> Rate:
    """Teraflops of one device in multiplying bfloat16 matrices.

    One of them only moves columns, so the product is known.
    """
    n = size.matmul
    with jax.default_device(device):
        i = jnp.arange(n)
        x = (i[:, None] + i[None]) % 128  # bfloat16 holds these exactly
        turn = jnp.roll(jnp.eye(n), 1, axis=1)
    x, turn = jax.device_put((x.astype(jnp.bfloat16), turn.astype(jnp.bfloat16)), device)
    seconds, y = _timed(functools.partial(_multiply, times=size.times), x, turn)
    wrong = _unlike(y, jnp.roll(x, size.times, axis=1))
    return Rate(value=2 * n**3 * size.times / seconds / 1e12, wrong=int(wrong))


def reduce_rate(devices: Sequence[Any], size: Sizes) -> Rate:
    """Gigabytes a second and device at which all devices sum; every process must call it.

    The rate is that of a ring, 2 (N - 1) / N times the bytes over the time, as in NCCL's tests. The
    wrong elements are those that arrived on devices of this process. One device: the rate is 0.
    """
    number = len(devices)
    mesh = _mesh(devices)
    ranks = 1 + np.arange(number) % _RANKS
    total = float(ranks.sum())
    x = _spread(mesh, [np.float32(rank) for rank in ranks])

    def pattern() -> Float32[Array, " E"]:
        return (jnp.arange(size.reduce) % _PERIOD).astype(jnp.float32)

    def check(x: Float32[Array, " 1"]) -> Int32[Array, " 1"]:
        return _unlike(lax.psum(x + pattern(), _AXIS), total + number * pattern())[None]

    def repeat(x: Float32[Array, " 1"]) -> Float32[Array, " E"]:
        return lax.fori_loop(0, size.times, lambda _, y: lax.psum(y, _AXIS) / number, x + pattern())

    seconds, _ = _timed(_everywhere(mesh, repeat), x)
    found = _everywhere(mesh, check)(x)
    wrong = sum(int(np.asarray(part.data)[0]) for part in found.addressable_shards)
    moved = 2 * (number - 1) / number * 4 * size.reduce * size.times
    return Rate(value=moved / seconds / 1e9, wrong=wrong)


def gather(message: bytes, room: int) -> list[bytes]:
    """What every process has to say, in their order; every process must call it.

    Unlike `process_allgather` it works where processes have unequal numbers of devices.

    Args:
      message: what this process says; no zero bytes.
      room: bytes for each message, the same everywhere.

    Raises:
      ValueError: if the message is longer than that.
    """
    if len(message) > room:
        raise ValueError(f"a message of {len(message)} bytes does not fit into {room}")
    row: UInt8[ndarray, " room"] = np.zeros(room, np.uint8)
    row[: len(message)] = np.frombuffer(message, np.uint8)
    mesh = _mesh(jax.devices())
    devices = list(mesh.devices.flat)  # make_mesh may have put them in another order
    mine = _spread(mesh, [row] * len(devices))
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = np.asarray(jax.jit(_identity, out_shardings=everywhere)(mine).addressable_data(0))
    first = {device.process_index: i for i, device in reversed(list(enumerate(devices)))}
    return [rows[first[process]].tobytes().rstrip(b"\0") for process in sorted(first)]


def _identity(x: jax.Array) -> jax.Array:
    return x


def _mesh(devices: Sequence[Any]) -> Mesh:
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def _spread(mesh: Mesh, rows: Sequence[Any]) -> jax.Array:
    """An array of one row for each device, from the rows that this process' devices get."""
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    shape = (len(rows), *np.shape(rows[0]))

    def held(index: Any) -> ndarray:
        return np.stack(rows[index[0]])

    return jax.make_array_from_callback(shape, sharding, held)


def _everywhere(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The function on every device, each with its own row."""
    spec = PartitionSpec(_AXIS)
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )


def _timed(function: Callable[..., jax.Array], *args: jax.Array) -> tuple[float, jax.Array]:
    """Seconds of the fastest of a few calls after one that compiles, and what it returns."""
    result = jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - begin)
    return min(seconds), result


@functools.partial(jax.jit, static_argnames="times")
def _add_one(x: Float[Array, " E"], *, times: int) -> Float[Array, " E"]:
    return lax.fori_loop(0, times, lambda _, y: y + 1, x)


@functools.partial(jax.jit, static_argnames="times")
def _multiply(x: Float[Array, "E E"], y: Float[Array, "E E"], *, times: int) -> Float[Array, "E E"]:
    return lax.fori_loop(0, times, lambda _, z: jnp.matmul(z, y).astype(z.dtype), x)


@jax.jit
def _unlike(x: Float[Array, "..."], known: Float[Array, "..."]) -> Int32[Array, ""]:
    """Number of elements that are not equal, NaN included."""
    return jnp.sum(~(x == known), dtype=jnp.int32)
