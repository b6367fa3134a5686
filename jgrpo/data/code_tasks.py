"""Programming problems from the files of HumanEval and MBPP, with their tests as columns.

Each example has the columns that the reward `code_tests` reads: `tests` (code with assertions),
`functions` (the names that they call and a program must define) and `stub` (code that a completion
may continue). Tests and solutions are text here; nothing in this file runs them.
"""

import ast
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from jgrpo.data.rows import Row, Rows, cut
from jgrpo.data.sources import Parsed, each
from jgrpo.types import Example, Message

_REPLY = "Reply with one Python code block that holds the whole program."
_MBPP_SPLITS = {"train": range(601, 975), "test": range(11, 511), "validation": range(511, 601)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanEvalOptions:
    """Settings of the task `humaneval`.

    Attributes:
      style: `chat` asks for the program in a code block; `stub` gives the bare beginning of the
        program, for a base model to continue.
    """

    style: Literal["chat", "stub"] = "chat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MbppOptions:
    """Settings of the task `mbpp`.

    Attributes:
      heldout_split: the official split to evaluate on: 500 or 90 problems.
      shown_tests: how many of the three tests stand in the prompt; all of them judge.
    """

    heldout_split: Literal["test", "validation"] = "test"
    shown_tests: Literal[1, 2, 3] = 1


def parse_humaneval(rows: Rows, options: HumanEvalOptions) -> Parsed:
    """Turns rows of HumanEval (arXiv:2107.03374) into examples, one by one.

    Helpers that a prompt defines stand before the tests too, so that a program cannot redefine
    what judges it.
    """
    return each(rows, lambda row: _humaneval_example(row, options))


def parse_mbpp(rows: Rows, options: MbppOptions) -> Parsed:
    """Turns rows of MBPP (arXiv:2108.07732) into examples, one by one.

    Where the tests use more of the reference program than its functions (a class, an import), no
    program can be judged by calls alone, and the column `functions` is empty. Departs: the paper
    shows all three tests.
    """
    return each(rows, lambda row: _mbpp_example(row, options))


def split_mbpp(
    examples: Sequence[Example], options: MbppOptions
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Returns the official splits to train on and to evaluate on.

    Left out are the other splits and rows without functions (four of 974).
    """
    train, held = (
        tuple(example for example in examples if in_split(example, name))
        for name in ("train", options.heldout_split)
    )
    return train, held


def in_split(example: Example, name: str) -> bool:
    """Whether an example of MBPP is used in the split of that name."""
    return example.columns["task_id"] in _MBPP_SPLITS[name] and bool(example.columns["functions"])


def _humaneval_example(row: Row, options: HumanEvalOptions) -> Example:
    fields = ("prompt", "entry_point", "canonical_solution", "test")
    stub, name, body, check = _texts(row, fields, "HumanEval")
    chat = options.style == "chat"
    ask = f"Complete this Python function. {_REPLY}\n\n```python\n{stub}```"
    return Example(
        prompt=_user(ask) if chat else stub,
        solution=_block(stub + body) if chat else body,
        columns={
            "task_id": row.get("task_id"),
            "tests": f"{_without(stub, name)}\n{check}\ncheck({name})\n",
            "functions": [name],
            "stub": stub,
        },
    )


def _mbpp_example(row: Row, options: MbppOptions) -> Example:
    asked, code = _texts(row, ("text", "code"), "MBPP")
    number, listed = row.get("task_id"), row.get("test_list")
    if not isinstance(number, int) or not isinstance(listed, list) or not listed:
        message = "must have a number 'task_id' and a list 'test_list'"
        raise ValueError(f"a row of MBPP {message}, got {cut(dict(row))}")
    listed = [_unix(test) for test in listed]
    tests = "\n".join([_unix(row.get("test_setup_code") or ""), *listed])
    shown = "\n".join(listed[: options.shown_tests])
    ask = f"{asked.strip()} {_REPLY} It must pass tests such as this:\n\n```python\n{shown}\n```"
    return Example(
        prompt=_user(ask),
        solution=_block(code),
        columns={"task_id": number, "tests": tests, "functions": _used(code, tests), "stub": ""},
    )


def _texts(row: Row, fields: tuple[str, ...], dataset: str) -> list[str]:
    values = [row.get(field) for field in fields]
    if not all(isinstance(value, str) and value for value in values):
        listed = ", ".join(map(repr, fields))
        raise ValueError(f"a row of {dataset} must have texts {listed}, got {cut(dict(row))}")
    return [_unix(value) for value in values]


def _without(stub: str, name: str) -> str:
    """The stub without the function to be written: its imports and helpers."""
    tree = _parse(stub)
    tree.body = [item for item in tree.body if getattr(item, "name", None) != name]
    return ast.unparse(tree)


def _used(code: str, tests: str) -> list[str]:
    """The functions of a program that its tests use; [] if they use other parts of it too."""
    body = _parse(code).body
    functions = {item.name for item in body if isinstance(item, ast.FunctionDef)}
    other = {item.name for item in body if isinstance(item, ast.ClassDef)}
    for item in body:
        if isinstance(item, ast.Import | ast.ImportFrom):
            other |= {alias.asname or alias.name for alias in item.names}
    used = {item.id for item in ast.walk(_parse(tests)) if isinstance(item, ast.Name)}
    return [] if used & other else sorted(used & functions)


def _parse(code: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its odd escapes, which are the data's business
            return ast.parse(code)
    except SyntaxError as error:
        raise ValueError(f"no valid Python in a row: {error}") from error


def _unix(value: Any) -> str:
    return str(value).replace("\r\n", "\n").replace("\r", "\n")


def _user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def _block(code: str) -> str:
    return f"```python\n{code.strip()}\n```"
