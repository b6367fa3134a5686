"""The task `mutants`: write a test that a design passes and its mutant fails.

`x%7;(x+1)%7?` asks for a number and what the first design makes of it: `#6:6`, since the second
makes 0 of 6. Designs are `(x + shift) % modulus + offset` on x from 0 to 99. The prompts are the
nodes of trees: the root is the right design, a child is its parent with one number changed, or
written differently with the same meaning. The nodes of a tree stand behind each other in the data,
so with `data.shuffle: false` a step asks whole trees.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Annotated, NamedTuple

from annotated_types import Ge, Le

from jgrpo.data.draws import HELDOUT_SIZE, TRAIN_SIZE, below, chance, is_heldout, stream
from jgrpo.types import Example

PATTERN = r"([0-9]+:[0-9]+;)*#[0-9]+:[0-9]+"
"""What a well-formed completion looks like."""

MAX_INPUT = 99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the task.

    Attributes:
      children: children of each node of a tree.
      depth: generations below the root.
      equivalent: probability that a child is its parent written differently.
    """

    children: Annotated[int, Ge(1), Le(4)] = 2
    depth: Annotated[int, Ge(1), Le(3)] = 2
    equivalent: Annotated[float, Ge(0.0), Le(1.0)] = 0.25

    @property
    def nodes(self) -> int:
        """Nodes of a tree, its root left out."""
        return sum(self.children ** (k + 1) for k in range(self.depth))


class Design(NamedTuple):
    """(x + shift) % modulus + offset."""

    shift: int
    modulus: int
    offset: int

    def __call__(self, x: int) -> int:
        """What the design makes of a number."""
        return (x + self.shift) % self.modulus + self.offset

    def __str__(self) -> str:
        """As it stands in a prompt."""
        inner = f"(x+{self.shift})" if self.shift else "x"
        return f"{inner}%{self.modulus}" + (f"+{self.offset}" if self.offset else "")


@dataclasses.dataclass(frozen=True)
class Trees:
    """The training split: node n of tree t is example t * nodes + n."""

    options: Options

    def __len__(self) -> int:
        return TRAIN_SIZE // self.options.nodes * self.options.nodes

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        number, node = divmod(index, self.options.nodes)
        draws = stream(f"mutants/train/{number}")
        while is_heldout(str(golden := _design(draws))):
            pass
        return _tree(self.options, golden, draws)[node]


@cache
def heldout(options: Options) -> tuple[Example, ...]:
    """Trees of designs that are in no training tree, at most `HELDOUT_SIZE` nodes."""
    draws, found = stream("mutants/heldout"), dict[str, Example]()
    for _ in range(4 * HELDOUT_SIZE):
        golden = _design(draws)
        if is_heldout(str(golden)):
            found |= {str(e.prompt): e for e in _tree(options, golden, draws)}
    return tuple(found.values())[:HELDOUT_SIZE]


def differs(golden: Design, mutant: Design) -> int | None:
    """The smallest input that tells the designs apart; None if there is none."""
    inputs = range(MAX_INPUT + 1)
    return next((x for x in inputs if golden(x) != mutant(x)), None)


def _design(draws: Iterator[int]) -> Design:
    return Design(below(draws, 4), 3 + below(draws, 17), below(draws, 4))


def _tree(options: Options, golden: Design, draws: Iterator[int]) -> list[Example]:
    """The nodes below the root, generation by generation; nodes are numbered from 1."""
    generation, examples = [(0, golden)], list[Example]()
    for _ in range(options.depth):
        born = list[tuple[int, Design]]()
        for parent, design in generation:
            for _ in range(options.children):
                child = _child(design, chance(draws, options.equivalent), draws)
                number = len(examples) + 1
                born.append((number, child))
                examples.append(_write(golden, child, number, parent))
        generation = born
    return examples


def _child(design: Design, equivalent: bool, draws: Iterator[int]) -> Design:
    if equivalent:
        return design._replace(shift=design.shift + design.modulus)
    place, step = below(draws, 3), 1 + below(draws, 2)
    changed = list(design)
    down = chance(draws, 0.5) and changed[place] - step >= (2 if place == 1 else 0)
    changed[place] += -step if down else step
    return Design(*changed)


def _write(golden: Design, mutant: Design, node: int, parent: int) -> Example:
    told = differs(golden, mutant)
    x = 0 if told is None else told
    test = f"{x}:{golden(x)}"
    return Example(
        prompt=f"{golden};{mutant}?",
        answer=test,
        solution=f"{x}:{mutant(x)};#{test}",
        columns={
            "golden": list(golden),
            "mutant": list(mutant),
            "node": node,
            "parent": parent,
            "equivalent": told is None,
        },
    )
