"""The reward for programs: the completion's functions are called in a sandbox, and tests judge.

The program of the model and the tests run in two interpreters that cannot see each other. Where a
test calls a function of the program, the arguments go over as plain data and plain data comes
back; the assertion is decided on the side of the tests. So nothing that a program prints, raises,
overrides or exits with is a pass: only values are, and it is never told which ones.
"""

import ast
import copy
import dataclasses
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from jgrpo.rewards.plain import Call, Kind, Limits, Plain, ProgramError
from jgrpo.rewards.sandbox import Sandbox, SandboxName, find_sandbox
from jgrpo.rewards.text import Completion, text

MAX_COMPLETION_CHARS = 1_000_000
"""A completion longer than this scores 0 and is not read."""
MAX_SOURCE_CHARS = 100_000
"""A program longer than this scores 0 and is not run."""

_FENCE = re.compile(r" {0,3}(`{3,})[ \t]*([\w+-]*)[^`]*")
_PYTHON = ("", "python", "python3", "py")
_JUDGED = ast.parse(
    "try:\n    jgrpo_passed = not not jgrpo_condition\n"
    "except:\n    jgrpo_passed = False\n"
    "jgrpo_record(jgrpo_passed)\n"
)


def code_tests(
    *,
    completions: Sequence[Completion],
    tests: Sequence[str | None],
    functions: Sequence[Sequence[str] | None],
    stub: Sequence[str | None],
    sandbox: SandboxName = "auto",
    score: Literal["all", "fraction"] = "all",
    unsupported: Literal["zero", "none"] = "zero",
    time_limit_s: Annotated[float, Gt(0)] = 3.0,
    memory_limit_mb: Annotated[int, Ge(16)] = 256,
) -> list[float | None]:
    """1 if the program of the completion passes its tests in a sandbox; else 0.

    Args:
      completions: what the model wrote; the program is its last Python code block that defines the
        functions, or all of it.
      tests: Python code with assertions; None is returned where there is none.
      functions: the names that the tests call and the program must define.
      stub: code that stands before the program and that it may continue; may be "".
      sandbox: where programs run: `monty`, `bwrap` (CPython under bubblewrap), or `auto`: `monty`.
      score: `all` gives 1 if every assertion holds, `fraction` the share of them that does.
      unsupported: what a program gets that uses a part of Python unknown to the sandbox: 0, or no
        reward.
      time_limit_s: seconds for the program, and for each call; keep thrice this below
        `reward.deadline_s`.
      memory_limit_mb: heap of a program, in MiB.
    """
    place = find_sandbox(sandbox)
    limits = Limits(time_s=time_limit_s, memory_bytes=memory_limit_mb << 20)
    values: list[float | None] = []
    for completion, checks, names, head in zip(completions, tests, functions, stub, strict=True):
        if not checks or not names:
            values.append(None)
            continue
        found = grade(
            program_of(text(completion), names, head or ""),
            instrument(checks, names),
            place,
            limits,
            stop=score == "all",
        )
        no_reward = found.tests_unsupported or (
            found.error == "unsupported" and unsupported == "none"
        )
        values.append(None if no_reward else found.score(score))
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tests:
    """Tests that are ready to run.

    Attributes:
      source: the code; it reports each assertion to `jgrpo_record`.
      calls: what stands for each function of the program in it.
      assertions: how many there are in the text; one in a loop counts once.
    """

    source: str
    calls: Mapping[str, str]
    assertions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grade:
    """What became of a program.

    Attributes:
      passed: assertions that held.
      failed: assertions that did not.
      total: assertions at least, had the tests run to their end.
      finished: whether they did.
      error: the first thing that went wrong in the program, if any.
      detail: that in words.
      tests_unsupported: the tests themselves cannot run in this sandbox.
    """

    passed: int
    failed: int
    total: int
    finished: bool
    error: Kind | None = None
    detail: str = ""
    tests_unsupported: bool = False

    def score(self, rule: Literal["all", "fraction"]) -> float:
        """Returns the reward: the share of the assertions that hold, or 1 for all of them."""
        if rule == "all":
            return float(self.finished and self.passed > 0 and not self.failed and not self.error)
        # What ended the tests, or an error that they swallowed, counts as one more failure.
        lost = not self.finished or (self.error is not None and not self.failed)
        return self.passed / max(self.total, self.passed + self.failed + lost)


def grade(source: str, tests: Tests, place: Sandbox, limits: Limits, *, stop: bool) -> Grade:
    """Runs a program and its tests, each in a sandbox of its own.

    Args:
      source: the program, trusted with nothing.
      tests: as `instrument` makes them.
      place: the sandbox.
      limits: of the program, and of the tests.
      stop: end at the first assertion that fails.
    """
    record: list[bool] = []
    errors: list[ProgramError] = []
    finished = tests_unsupported = False

    def note(passed: bool) -> None:
        record.append(passed)
        if stop and not passed:
            raise RuntimeError("an assertion failed")

    def forward(call: Call, name: str, *arguments: Plain, **named: Plain) -> Plain:
        try:
            return call(name, arguments, named)
        except ProgramError as error:
            errors.append(error)
            raise RuntimeError(str(error)) from error

    try:
        if len(source) > MAX_SOURCE_CHARS:
            raise ProgramError("limit", f"a program longer than {MAX_SOURCE_CHARS} characters")
        with place.program(source, limits) as call:
            known = {
                alias: functools.partial(forward, call, name) for name, alias in tests.calls.items()
            }
            try:
                place.run(tests.source, {**known, "jgrpo_record": note}, limits)
                finished = True
            except ProgramError as error:
                tests_unsupported = error.kind == "unsupported" and not record and not errors
    except ProgramError as error:
        errors.append(error)
    return Grade(
        passed=sum(record),
        failed=len(record) - sum(record),
        total=tests.assertions,
        finished=finished,
        error=errors[0].kind if errors else None,
        detail=str(errors[0]) if errors else "",
        tests_unsupported=tests_unsupported,
    )


def instrument(tests: str, functions: Sequence[str]) -> Tests:
    """Rewrites tests so that every assertion is reported instead of raised.

    Args:
      tests: the code; assertions of a constant are dropped.
      functions: the names that stand for functions of the program.

    Raises:
      ValueError: if the code is no Python or asserts nothing, or a function is no name.
    """
    for name in functions:
        if not name.isidentifier():
            raise ValueError(f"column 'functions': must hold names of Python, got {name!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes, which are the data's business
            tree = ast.parse(tests)
    except SyntaxError as error:
        raise ValueError(f"column 'tests': no valid Python: {error}") from error
    judge = _Judge()
    tree = ast.fix_missing_locations(judge.visit(tree))
    if not judge.count:
        raise ValueError(f"column 'tests': must assert something, got {tests!r:.80}")
    calls = {name: f"jgrpo_call_{name}" for name in functions}
    head = [f"{name} = {alias}" for name, alias in calls.items()]
    return Tests(source="\n".join([*head, ast.unparse(tree)]), calls=calls, assertions=judge.count)


class _Judge(ast.NodeTransformer):
    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> Any:
        if isinstance(node.test, ast.Constant):
            return ast.Pass()
        self.count += 1
        return _Fill(node.test).visit(copy.deepcopy(_JUDGED)).body


class _Fill(ast.NodeTransformer):
    def __init__(self, condition: ast.expr) -> None:
        self._condition = condition

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._condition if node.id == "jgrpo_condition" else node


def program_of(completion: str, functions: Sequence[str], stub: str) -> str:
    """Returns the program that a completion stands for.

    That is its last Python code block that defines the functions, or its last one, or, where it
    has none, all of it. A stub goes before it. Text without a block that does not define the
    functions continues the stub, up to the first line that is not indented.

    Args:
      completion: what the model wrote.
      functions: the names that the program must define.
      stub: code that the completion may continue, or "".
    """
    if len(completion) > MAX_COMPLETION_CHARS:
        return completion
    completion = completion.replace("\r\n", "\n").replace("\r", "\n")
    blocks = _blocks(completion)
    whole = [block for block in blocks or [completion] if _defines(block, functions)]
    if whole:
        return f"{stub}\n{whole[-1]}" if stub else whole[-1]
    if blocks:
        return stub + blocks[-1]
    return stub + _continuation(completion) if stub else completion


def _defines(source: str, functions: Sequence[str]) -> bool:
    return all(
        re.search(rf"^(?:(?:async +)?(?:def|class) +{name}\b|{name} *[:=])", source, re.MULTILINE)
        for name in map(re.escape, functions)
    )


def _blocks(completion: str) -> list[str]:
    """The Python code blocks; the last one may lack its end."""
    found: list[str] = []
    lines: list[str] = []
    fence = language = ""
    for line in completion.split("\n"):
        match = _FENCE.fullmatch(line)
        if match and not fence:
            fence, language, lines = match[1], match[2].lower(), []
        elif fence and line.strip().startswith(fence) and not line.strip().strip("`"):
            if language in _PYTHON:
                found.append("\n".join(lines) + "\n")
            fence = ""
        else:
            lines.append(line)
    if fence and language in _PYTHON:
        found.append("\n".join(lines) + "\n")
    return found


def _continuation(completion: str) -> str:
    lines = completion.split("\n")
    end = next(
        (place for place, line in enumerate(lines) if place and line[:1].strip()), len(lines)
    )
    return "\n".join(lines[:end]) + "\n"
