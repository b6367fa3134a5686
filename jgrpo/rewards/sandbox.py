"""The sandboxes by name: where a program of a model may run. It never runs anywhere else.

Every sandbox does two things: it keeps a program whose functions can be called, and it runs a
program some of whose names are functions out here. Only plain data passes (`plain.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

from jgrpo.rewards import bubblewrap, monty
from jgrpo.rewards.plain import Call, Limits, Plain

SandboxName: TypeAlias = Literal["auto", "monty", "bwrap"]


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """A place for programs.

    Attributes:
      program: runs a program and gives a context in which its functions can be called.
      run: runs a program to its end; takes its source, the names in it that stand for functions
        out here, and the limits.
    """

    program: Callable[[str, Limits], AbstractContextManager[Call]]
    run: Callable[[str, Mapping[str, Callable[..., Plain]], Limits], None]


def find_sandbox(name: SandboxName) -> Sandbox:
    """Returns a sandbox; `auto` is `monty`, never something less safe.

    Raises:
      FileNotFoundError: if the sandbox is not installed.
    """
    chosen = "monty" if name == "auto" else name
    if chosen == "bwrap":
        bubblewrap.find()
    return SANDBOXES[chosen]


SANDBOXES: Mapping[str, Sandbox] = {
    "monty": Sandbox(monty.program, monty.run),
    "bwrap": Sandbox(bubblewrap.program, bubblewrap.run),
}
"""Every sandbox by name."""
