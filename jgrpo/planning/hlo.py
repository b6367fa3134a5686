"""What an optimised HLO text says of the collectives of a program.

The text names each operation once; how often it runs follows from the loops around it, whose trip
counts XLA writes beside them.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_BYTES = {"pred": 1, "token": 0, "c64": 8, "c128": 16}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+)(?: \(.*)? ?\{\s*$")
_LINE = re.compile(r"^\s*(?:ROOT )?(%?[\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|token|bf16|[suf]\d+|c64|c128|f8\w*|f4\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_CHAIN = re.compile(r'\bchannel_id=(\d+).*\bchain_id="(\d+)"')
_LISTED = re.compile(r"\b(?:replica_groups|source_target_pairs)=\{\{([\d, ]*)\}")
_IOTA = re.compile(r"\breplica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(
    r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"\{([^}]*)\}"
)


class _Line(NamedTuple):
    """An instruction: its name, the type of its result, the operation, and what follows."""

    name: str
    result: str
    kind: str
    rest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of exchange over the same mesh axes.

    Attributes:
      kind: as HLO calls it.
      axes: mesh axes over which the chips of a group differ.
      size: chips of a group.
      bytes: what a chip has when all is put together, in all runs of a program: the result of an
        all-gather, the operand of all others.
      count: how often it runs.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    bytes: int
    count: int

    @property
    def sent(self) -> float:
        """Bytes that each chip sends, around a ring in both directions.

        An all-reduce is a reduce-scatter and an all-gather; in an all-to-all a part goes a quarter
        of the way around on average.
        """
        share = self.bytes * (self.size - 1) / self.size
        factors = {
            "all-reduce": 2.0,
            "all-to-all": self.size / 4,
            "ragged-all-to-all": self.size / 4,
        }
        if self.kind.startswith("collective"):
            return float(self.bytes)
        return share * factors.get(self.kind, 1.0)


def collectives(text: str, mesh: Mapping[str, int]) -> tuple[Collective, ...]:
    """The collectives of a compiled program, equal ones together, the largest first.

    A loop whose trip count cannot be read counts once.

    Args:
      text: `Compiled.as_text()`.
      mesh: sizes of the mesh axes by name, in the order of the devices.
    """
    found: dict[tuple[str, tuple[str, ...], int], list[int]] = defaultdict(lambda: [0, 0])
    for times, line in _collective_lines(_computations(text)):
        base = line.kind.removesuffix("-start")
        group = _group(line.rest, math.prod(mesh.values()))
        key = (base, _axes(group, mesh), len(group))
        found[key][0] += times * _size(base, line, len(group))
        found[key][1] += times
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    return tuple(
        Collective(kind=kind, axes=axes, size=size, bytes=total, count=count)
        for (kind, axes, size), (total, count) in ordered
        if axes  # groups of one chip exchange nothing
    )


def _computations(text: str) -> dict[str, list[_Line]]:
    """The instructions by computation; the entry first."""
    found: dict[str, list[_Line]] = {}
    entry, lines = "", list[_Line]()
    for line in text.splitlines():
        if instruction := _LINE.match(line):
            lines.append(_Line(*instruction.groups()))
        elif not line.startswith("HloModule") and (header := _HEADER.match(line)):
            lines = found[header[2]] = []
            entry = header[2] if header[1] else entry
    return {entry: found.pop(entry), **found} if entry else found


def _collective_lines(computations: Mapping[str, list[_Line]]) -> Iterator[tuple[int, _Line]]:
    """Every collective, and how often it runs when the entry runs once.

    The TPU's compiler writes one that it spreads over several fusions into each of them, with the
    number of a chain: within a loop's body these are one.
    """
    seen: set[tuple[str, ...]] = set()

    def run(name: str, scope: str, times: int) -> Iterator[tuple[int, _Line]]:
        for line in computations[name]:
            if line.kind.removesuffix("-start") in KINDS:
                chain = _CHAIN.search(line.rest)
                key = (scope, *chain.groups()) if chain else None
                if key is None or key not in seen:
                    yield times, line
                if key is not None:
                    seen.add(key)
            trips = _trips(line.rest, computations) if line.kind == "while" else 1
            for called in _called(line.rest):
                if called in computations:
                    inner = called if line.kind in ("while", "conditional", "call") else scope
                    yield from run(called, inner, times * trips)

    first = next(iter(computations))
    yield from run(first, first, 1)


def _trips(rest: str, computations: Mapping[str, list[_Line]]) -> int:
    """Trips of a loop: as XLA says, or the constant that its counter is compared with, from 0."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = _CONDITION.search(rest)
    lines = computations.get(condition[1], []) if condition else []
    constants = {
        line.name: line.rest.partition(")")[0]
        for line in lines
        if line.kind == "constant" and line.result.startswith("s32[]")
    }
    for line in lines:
        if line.kind == "compare" and "direction=LT" in line.rest:
            limit = line.rest.partition(")")[0].rpartition(", ")[2]
            if limit in constants:
                return int(constants[limit])
    return 1


def _called(rest: str) -> Iterator[str]:
    yield from _CALLED.findall(rest)
    for names in _BRANCHES.findall(rest):
        yield from (name.strip().removeprefix("%") for name in names.split(","))


def _group(rest: str, devices: int) -> tuple[int, ...]:
    """The chips of the first group, or of the first pair; all if none are named."""
    if listed := _LISTED.search(rest):
        return tuple(map(int, listed[1].split(",")))
    if iota := _IOTA.search(rest):
        return tuple(_ids(iota[2], iota[3]).reshape(_numbers(iota[1]))[0].tolist())
    if named := _NAMED.search(rest):
        sizes = [int(size) for size in re.findall(r"=(\d+)", named[1])]
        ids = np.arange(math.prod(sizes))
        if named[2]:
            ids = _ids(named[2], named[3])
        wanted = {int(axis) for axis in re.findall(r"axis_(\d+)", named[4])}
        where = tuple(slice(None) if i in wanted else 0 for i in range(len(sizes)))
        return tuple(ids.reshape(sizes)[where].reshape(-1).tolist())
    return tuple(range(devices))


def _ids(dims: str, order: str | None) -> np.ndarray:
    """Numbers of chips in the order that HLO writes as `[dims]T(order)`."""
    shape = _numbers(dims)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split(",")))


def _axes(group: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which these chips differ."""
    places = np.unravel_index(np.array(group), tuple(mesh.values()))
    return tuple(name for name, at in zip(mesh, places, strict=True) if len(set(at.tolist())) > 1)


def _size(base: str, line: _Line, group: int) -> int:
    """Bytes of an all-gather's result, or of another collective's operand."""
    is_start = line.kind != base
    total = sum(
        _element(name) * math.prod(int(n) for n in dims.split(",") if n)
        for name, dims in _SHAPE.findall(line.result)
        if dims or not is_start  # a start has semaphores without dims
    )
    if base == "reduce-scatter":
        total *= group
    elif is_start and base == "all-gather":  # operand and result
        total *= group / (group + 1)
    elif is_start and base != "all-reduce":
        total /= 2
    return int(total)


def _element(name: str) -> float:
    if name in _BYTES:
        return _BYTES[name]
    bits = re.search(r"\d+", name)
    assert bits is not None
    return int(bits[0]) / 8
