"""Kinds of chips that a run may be planned for, by what their makers publish."""

import dataclasses
import math
import os
from collections.abc import Mapping

GIB = 2**30
GPUS_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip.

    Attributes:
      hbm: bytes that programs may take.
      flops: dense products of bfloat16, operations a second; 0: unknown, and nothing is estimated.
      hbm_speed: bytes a second between memory and chip.
      link_speed: bytes a second that one link carries one way.
      dims: dims of the torus it is a part of, two links each; GPUs: 1, all links together count as
        one.
      platform: what jax calls it.
      config: libtpu's name for how its cores are used; a v4's two are one device, as on real ones.
    """

    hbm: int
    flops: float
    hbm_speed: float
    link_speed: float
    dims: int
    platform: str = "tpu"
    config: str = "default"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Chips and how they are connected.

    Attributes:
      name: as it was asked for, such as `v5p:2x2x4`.
      chip: what they are.
      shape: chips along each dim.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    def axis_speed(self, size: int) -> float:
        """Bytes a second that a chip can send along a mesh axis of so many chips.

        ASSUMED: the axis lies on the fewest dims of the torus that hold it, the largest first, and
        both links of each carry their share; dims too short for a ring are counted as rings.
        """
        dims, held = 0, 1
        for length in sorted(self.shape, reverse=True):
            if held < size:
                dims, held = dims + 1, held * length
        return 2 * max(1, dims) * self.chip.link_speed


def topology(name: str) -> Topology:
    """Reads `KIND:SHAPE`, such as `v5e:2x4`, `v5p:2x2x4`, `h100:8`, or `cpu:8`.

    Raises:
      ValueError: if there is no such kind, or no such shape of it.
    """
    kind, _, shape = name.partition(":")
    words = shape.split("x")
    if kind not in CHIPS and kind != "cpu":
        raise ValueError(f"--topology {name!r}: no kind {kind!r}; known: cpu, {', '.join(CHIPS)}")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(
            f"--topology {name!r}: after the kind come its chips, such as v5e:2x4 or h100:8"
        )
    sizes = tuple(map(int, words))
    chip = CHIPS.get(kind) or _cpu(math.prod(sizes))
    if len(sizes) != chip.dims:
        raise ValueError(
            f"--topology {name!r}: {kind} has {chip.dims} dim(s), got {len(sizes)}: {shape}"
        )
    if chip.platform == "gpu" and sizes[0] > GPUS_OF_A_HOST:
        raise ValueError(f"--topology {name!r}: at most {GPUS_OF_A_HOST} GPUs, those of one host")
    return Topology(name=name, chip=chip, shape=sizes)


def _cpu(count: int) -> Chip:
    """A simulated device of this machine: its share of the memory, and no figures of speed."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(
        hbm=memory // count, flops=0.0, hbm_speed=0.0, link_speed=0.0, dims=1, platform="cpu"
    )


def _gpu(capacity: float, flops: float, hbm_speed: float, link_speed: float) -> Chip:
    """A GPU, of whose memory jax takes three quarters (`XLA_PYTHON_CLIENT_MEM_FRACTION`)."""
    return Chip(
        hbm=int(0.75 * capacity),
        flops=flops,
        hbm_speed=hbm_speed,
        link_speed=link_speed / 2,  # `axis_speed` counts two
        dims=1,
        platform="gpu",
    )


# TPU: the memory that libtpu 0.0.42 lets a program have, as its compiler says of one that is too
# large; speeds from cloud.google.com/tpu/docs, a link's share of the chip's interconnect.
# GPU: NVIDIA's data sheets (SXM; dense; NVLink one way).
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        hbm=int(30.75 * GIB),
        flops=275e12,
        hbm_speed=1.2e12,
        link_speed=50e9,
        dims=3,
        config="megacore",
    ),
    "v5e": Chip(hbm=int(15.75 * GIB), flops=197e12, hbm_speed=819e9, link_speed=50e9, dims=2),
    "v5p": Chip(hbm=int(95.74 * GIB), flops=459e12, hbm_speed=2.765e12, link_speed=100e9, dims=3),
    "v6e": Chip(hbm=int(31.25 * GIB), flops=918e12, hbm_speed=1.64e12, link_speed=100e9, dims=2),
    "a100-40": _gpu(40e9, 312e12, 1.555e12, 300e9),
    "a100-80": _gpu(80e9, 312e12, 2.039e12, 300e9),
    "h100": _gpu(80e9, 989e12, 3.35e12, 450e9),
    "h200": _gpu(141e9, 989e12, 4.8e12, 450e9),
}
