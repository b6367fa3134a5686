"""Packing: the completions of a group behind each other in rows, instead of each padded.

A *unit* is a prompt with R rows of W slots for completions of its group; a group that needs more
takes several units, its prompt repeated. A *bin* is what one device runs at once: U units. What
stands in a slot is an input; it predicts the token after it, and the prompt's last position
predicts each first token, so that a completion of n tokens takes n - 1 slots.

Only the forward pass sees slots. What it says of the tokens is laid out by completion again, so
that loss and records are those of a batch of C completions in groups of one.

Shapes come from short lists, so that few programs are compiled: for one width of prompts, of
completions and of rows, at most `len(_ROWS) + 1` heights x `len(_UNITS)` numbers of units x the
quarters of the slots that may be filled.

Letters: P prompts, G completions per prompt, T completion tokens, Lp prompt tokens, B bins,
N tokens that a bin predicts, X = B * U units, Y = B * C completions.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, PyTree
from numpy import ndarray

from jgrpo.buckets import bucket
from jgrpo.learner.batch import rearranged
from jgrpo.types import AnyArray, Batch

_ROWS = (Fraction(1, 8), Fraction(1, 4), Fraction(3, 8), Fraction(1, 2), Fraction(3, 4))
"""Rows of a unit, relative to the completions of a group; 1 row too."""
_UNITS = (Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(2))
"""Units of a device, relative to its prompts."""
_WORTH = 0.8
"""Share of the padded positions above which packing is not worth its gathers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch laid out for the devices, bin by bin; the bins of a device follow each other.

    Attributes:
      batch: the completions in groups of one, Y of them with padding; its prompts are those of
        the X units.
      tokens: ids in the slots.
      segments: number of the completion in each slot, counted in its group; -1: none.
      offsets: number of completion tokens before the one in the slot.
      reads: where the state that predicts each token stands among the slots and the prompts' ends
        of its bin.
      targets: ids of these tokens.
      places: number of each token of a completion in `reads`; -1: it is not predicted.
    """

    batch: Batch
    tokens: Int[AnyArray, "X R W"]
    segments: Int[AnyArray, "X R W"]
    offsets: Int[AnyArray, "X R W"]
    reads: Int[AnyArray, "B N"]
    targets: Int[AnyArray, "B N"]
    places: Int[AnyArray, "Y T"]


class _Unit(NamedTuple):
    """Some completions of a group: which stand in each row, those without a slot in the first."""

    prompt: int
    rows: list[list[int]]
    tokens: int


class _Layout(NamedTuple):
    rows: int
    width: int
    units: int
    bins: int


def pack(
    batch: Batch, *, devices: int, microbatch_completions: int = 0
) -> tuple[Packed, Int[ndarray, "P G"]] | None:
    """Lays a batch out in rows, if that saves at least a fifth of the positions.

    Args:
      batch: on the host. A completion ends with its last trained token; one without any is left
        out.
      devices: number of devices that the batch is split over.
      microbatch_completions: a bin has at most the positions of that many padded completions with
        their prompts; 0: a device has one bin.

    Returns:
      The layout, and the number of each completion in it (-1: left out); or None.
    """
    mask = np.asarray(batch.mask)
    P, G, T = mask.shape
    lengths = np.where(mask.any(-1), T - np.argmax(mask[..., ::-1], axis=-1), 0)
    if lengths.max(initial=0) < 2:
        return None
    width = min(bucket(int(lengths.max()) - 1), T)
    rows = [_first_fit(of_group, width) for of_group in lengths]
    prompt_width = batch.prompts.tokens.shape[1]
    budget = microbatch_completions * T + math.ceil(microbatch_completions / G) * prompt_width
    layout, positions = _choose(rows, G, width, prompt_width, devices, budget)
    if layout is None or positions > _WORTH * P * (G * T + prompt_width):
        return None
    return _lay_out(batch, lengths, _deal(_units(rows, lengths, layout.rows), layout), layout)


def _first_fit(lengths: Int[ndarray, " G"], width: int) -> list[list[int]]:
    """Rows of a group by first-fit decreasing: each completion in the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for g in np.argsort(-lengths, kind="stable").tolist():
        if lengths[g] == 0:
            break
        slots = int(lengths[g]) - 1
        row = next((i for i, free in enumerate(room) if free >= slots), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(g)
        room[row] -= slots
    return rows


def _choose(
    rows: Sequence[Sequence[object]],
    group_size: int,
    width: int,
    prompt_width: int,
    devices: int,
    budget: int,
) -> tuple[_Layout | None, int]:
    """The layout with the fewest positions, prompts included, and their number."""
    best, least = None, 0
    for height in sorted({1} | {math.ceil(share * group_size) for share in _ROWS}):
        of_unit = height * width + prompt_width
        needed = sum(-(-len(of_group) // height) for of_group in rows)
        for share in _UNITS:
            units = math.ceil(share * len(rows) / devices)
            at_once = min(units, budget // of_unit) if budget else units
            if at_once == 0:
                continue
            bins = devices * -(-units // at_once)
            if needed <= bins * at_once and (best is None or bins * at_once * of_unit < least):
                best = _Layout(height, width, at_once, bins)
                least = bins * at_once * of_unit
    return best, least


def _units(
    rows: Sequence[list[list[int]]], lengths: Int[ndarray, "P G"], height: int
) -> list[_Unit]:
    units = []
    for prompt, of_group in enumerate(rows):
        parts = -(-len(of_group) // height)
        # Every part-th row: the first rows are the fullest.
        for some in (of_group[part::parts] for part in range(parts)):
            tokens = sum(int(lengths[prompt, g]) for row in some for g in row)
            units.append(_Unit(prompt, some, tokens))
    return units


def _deal(units: Sequence[_Unit], layout: _Layout) -> list[list[_Unit]]:
    """Units of each bin: the largest first, each into the bin that has the fewest tokens."""
    bins: list[list[_Unit]] = [[] for _ in range(layout.bins)]
    filled = [0] * layout.bins
    for unit in sorted(units, key=lambda unit: -unit.tokens):
        free = (b for b in range(layout.bins) if len(bins[b]) < layout.units)
        chosen = min(free, key=lambda b: filled[b])
        bins[chosen].append(unit)
        filled[chosen] += unit.tokens
    return bins


def _lay_out(
    batch: Batch,
    lengths: Int[ndarray, "P G"],
    bins: Sequence[Sequence[_Unit]],
    layout: _Layout,
) -> tuple[Packed, Int[ndarray, "P G"]]:
    """Writes the arrays of a layout."""
    R, W, U, B = layout
    (P, G, T), tokens = batch.tokens.shape, np.asarray(batch.tokens)
    N = _quarters(max(sum(unit.tokens for unit in units) for units in bins), U * R * W)
    most = max(sum(1 for _ in _completions(units)) for units in bins)
    C = min(P * G, 2 * math.ceil(P * G / B))
    C = C if most <= C else P * G
    slots = {name: np.zeros((B * U, R, W), np.int32) for name in ("tokens", "offsets")}
    segments = np.full((B * U, R, W), -1, np.int32)
    reads, targets = np.zeros((B, N), np.int32), np.zeros((B, N), np.int32)
    places = np.full((B * C, T), -1, np.int32)
    prompts = np.zeros(B * U, np.int64)
    source, home = np.full(B * C, -1), np.full((P, G), -1)
    for b, units in enumerate(bins):
        prompts[b * U : b * U + len(units)] = [unit.prompt for unit in units]
        read = 0
        for c, (u, p, r, begin, g) in enumerate(_completions(units, lengths)):
            n, at = int(lengths[p, g]), (b * U + u, r, slice(begin, begin + int(lengths[p, g]) - 1))
            slots["tokens"][at], slots["offsets"][at] = tokens[p, g, : n - 1], np.arange(n - 1)
            segments[at] = g
            first = (u * R + r) * W + begin
            reads[b, read] = U * R * W + u
            reads[b, read + 1 : read + n] = np.arange(first, first + n - 1)
            targets[b, read : read + n] = tokens[p, g, :n]
            places[b * C + c, :n] = np.arange(read, read + n)
            source[b * C + c], home[p, g] = p * G + g, b * C + c
            read += n
    rows = rearranged(batch, prompts, source[:, None])
    arrays = {"reads": reads, "targets": targets, "places": places, "segments": segments}
    return Packed(batch=rows, **slots, **arrays), home


def _completions(
    units: Sequence[_Unit], lengths: Int[ndarray, "P G"] | None = None
) -> Iterator[tuple[int, int, int, int, int]]:
    """Unit, prompt, row, first slot (if lengths are given) and number of each completion."""
    for u, unit in enumerate(units):
        for r, row in enumerate(unit.rows):
            begin = 0
            for g in row:
                yield u, unit.prompt, r, begin, g
                begin += 0 if lengths is None else int(lengths[unit.prompt, g]) - 1


def _quarters(tokens: int, slots: int) -> int:
    """The least number of quarters of the slots, at least two, that holds the tokens."""
    quarter = -(-slots // 4)
    return quarter * max(2, -(-tokens // quarter))


def spread(values: Float32[Array, "B N"], places: Int[Array, "Y T"]) -> Float32[Array, "Y 1 T"]:
    """Lays what each bin says of its tokens out by completion; 0 where it says nothing."""
    by_bin = places.reshape(values.shape[0], -1)
    found = jax.vmap(lambda x, i: jnp.take(x, i, mode="clip"))(values, jnp.maximum(by_bin, 0))
    return jnp.where(by_bin >= 0, found, 0.0).reshape(places.shape)[:, None]


def restore(values: Float32[Array, "Y 1 T"], home: Int[AnyArray, "P G"]) -> Float32[Array, "P G T"]:
    """Undoes the order of the completions; 0 for those that were left out."""
    found = jnp.take(values[:, 0], jnp.maximum(home, 0), axis=0)
    return jnp.where((home >= 0)[..., None], found, 0.0)


def split_bins(data: PyTree, bins: int, shards: int) -> list[Array]:
    """The arrays of a packed batch by microbatch: one bin of every device in each.

    Args:
      data: a `Packed`, and further arrays over its completions.
      bins: number of its bins.
      shards: number of devices.
    """

    def cut(x: Array) -> Array:
        by_bin = x.reshape(shards, bins // shards, -1, *x.shape[1:])
        return jnp.swapaxes(by_bin, 0, 1).reshape(bins // shards, -1, *x.shape[1:])

    return [cut(x) for x in jax.tree.leaves(data)]


def merge_bins(parts: Float32[Array, "M y 1 T"], shards: int) -> Float32[Array, "Y 1 T"]:
    """Undoes `split_bins` for what is said of the completions."""
    by_bin = parts.reshape(parts.shape[0], shards, -1, *parts.shape[2:])
    return jnp.swapaxes(by_bin, 0, 1).reshape(-1, *parts.shape[2:])
