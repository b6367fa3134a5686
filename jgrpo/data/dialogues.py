"""Stored dialogues about programs, cut into prompts of one turn each (Cobalt).

A row is a dialogue: `task` (its name), `messages` (a system message, if there is one, then user and
assistant in turn), `passed` (share of all tests that the program of each assistant's message
passes) and, if visible outputs are to be swapped, `public` (assertions that users' messages show).
Every other field goes with the prompts: `tests`, `functions` and `stub` for the reward `cobalt`.
"""

import ast
import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jgrpo.config import ColumnsConfig
from jgrpo.data.draws import content_hash
from jgrpo.data.rows import BadRow, Row, Rows, cut
from jgrpo.data.sources import parse
from jgrpo.types import Example, Message

TURNS = 3
"""Last turn behind which a dialogue is cut."""
KEPT = 4
"""Most dialogues of a task that are cut."""
_LOOKED_AT = 16
_OWN = ("messages", "passed", "public")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A stored dialogue.

    Attributes:
      task: name of what it is about.
      messages: a system message or none, then user and assistant in turn.
      passed: share of the tests that the program of each assistant's message passes.
      public: assertions that stand in users' messages.
      columns: what else the row holds.
    """

    task: str
    messages: Sequence[Message]
    passed: Sequence[float | int]
    public: Sequence[str] = ()
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ends(self) -> list[int]:
        """Messages before each place at which an assistant speaks, or would speak next."""
        said = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        goes_on = self.messages[-1]["role"] == "user"
        return [*said, len(self.messages)] if goes_on else said

    @property
    def spread(self) -> float | None:
        """Largest less smallest share; None where no program passes all, or all pass alike."""
        most, least = max(self.passed), min(self.passed)
        return float(most - least) if most >= 1 and most > least else None


def read_dialogues(rows: Rows) -> list[Dialogue]:
    """The dialogues of a file.

    Args:
      rows: rows with their places.

    Raises:
      ValueError: naming the place of the first row that is none, and what is wrong with it.
    """
    found = []
    for place, item in parse(rows, ColumnsConfig(prompt="messages")):
        try:
            if isinstance(item, BadRow):
                raise ValueError(item.message)
            found.append(_dialogue(item))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return found


def bandits(
    dialogues: Sequence[Dialogue],
    fits: Callable[[Sequence[Message]], bool],
    *,
    swapped: float = 0.1,
) -> Iterator[Row]:
    """Prompts of one turn: every task alone, and its dialogues behind their first turns.

    A task whose first programs all pass is left out. Of others the task alone is the first prompt
    (`prev_best` 0). Then come the dialogues in which some program passes all tests and others pass
    fewer, those whose spreads differ most (`varied`), cut behind turns 1 to 3: up to where the
    programs of two turns in a row pass, or a prompt does not fit.

    Args:
      dialogues: in any order; those of a task begin alike.
      fits: False for messages that are too long for a prompt.
      swapped: share of the cut dialogues, by a hash of their text, in which two visible outputs
        change places, so that a program which copies them fails.

    Yields:
      Rows of the task `jsonl`: `prompt` (messages), `prev_best` (best share of the turns before),
      `turn`, `swapped`, and the columns of the dialogue.

    Raises:
      ValueError: if dialogues of a task begin differently, or an output cannot be swapped.

    References:
      Cobalt, arXiv:2602.03806; authors' process_multi_turn_taco.py. Departs: of more than 16 that
      could be cut the first are looked at; the share that is swapped, and which two outputs (the
      first two that differ), are assumed. The limit of 10,000 tokens is the caller's.
    """
    by_task = dict[str, list[Dialogue]]()
    for dialogue in dialogues:
        by_task.setdefault(dialogue.task, []).append(dialogue)
    for task, those in by_task.items():
        begins = [list(dialogue.messages[: dialogue.ends[0]]) for dialogue in those]
        if any(begin != begins[0] for begin in begins):
            raise ValueError(f"task {task!r}: its dialogues must begin with the same messages")
        if all(dialogue.passed[0] >= 1 for dialogue in those):
            continue
        if fits(begins[0]):
            yield _row(those[0], begins[0], 0, swapped=False)
        usable = [dialogue for dialogue in those if dialogue.spread is not None][:_LOOKED_AT]
        for i in varied([dialogue.spread for dialogue in usable], KEPT):
            yield from _turns(usable[i], fits, swapped)


def varied(ranges: Sequence[float | int | None], most: int = KEPT) -> list[int]:
    """Which stored dialogues of a problem are kept: so many that their ranges differ most.

    Begins with the smallest ranges; then for k = 1, 2, ... the first most - k of the current ones
    and the k largest are taken if the variance grows.

    Args:
      ranges: largest less smallest share of passed tests over the turns of each dialogue; None for
        one that cannot be used.
      most: how many are kept.

    Returns:
      Their numbers.

    References:
      Cobalt, arXiv:2602.03806; authors' process_multi_turn_taco.py. Departs: none.

    Example:
      >>> varied([1, 0.5, 0.1, 0.8, None, None, 0.4])
      [2, 6, 3, 0]
    """
    known = {i: d for i, d in enumerate(ranges) if d is not None}
    ordered = sorted(known, key=lambda i: known[i])
    kept = ordered[:most]

    def variance(rows: Sequence[int]) -> float:
        return statistics.pvariance([known[i] for i in rows])

    for k in range(1, most if len(ordered) > most else 0):
        tried = kept[: most - k] + ordered[len(ordered) - k :]
        if len(set(tried)) == most and variance(tried) > variance(kept):
            kept = tried
    return kept


def swapped_outputs(public: Sequence[str]) -> dict[str, str]:
    """The first two assertions with different outputs, each with the other's; empty without two.

    Raises:
      ValueError: if one is not of the form `assert CALL == OUTPUT`.

    Example:
      >>> swapped_outputs(["assert f(1) == 2", "assert f(1, 1) == 2", "assert f(3) == [4]"])
      {'assert f(1) == 2': 'assert f(1) == [4]', 'assert f(3) == [4]': 'assert f(3) == 2'}
    """
    sides = [_sides(line) for line in public]
    for i, (left, right) in enumerate(sides):
        for j, (other_left, other_right) in enumerate(sides[i + 1 :], start=i + 1):
            if right != other_right:
                return {
                    public[i]: f"assert {left} == {other_right}",
                    public[j]: f"assert {other_left} == {right}",
                }
    return {}


def _sides(line: str) -> tuple[str, str]:
    try:
        (found,) = ast.parse(line.strip()).body
    except (SyntaxError, ValueError):
        found = None
    test = found.test if isinstance(found, ast.Assert) else None
    if isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]:
        return ast.unparse(test.left), ast.unparse(test.comparators[0])
    raise ValueError(f"field 'public': must list assertions 'assert CALL == OUTPUT', got {line!r}")


def _dialogue(item: Example) -> Dialogue:
    columns = dict(item.columns)
    task, passed, public = (columns.get(name) for name in ("task", "passed", "public"))
    messages = [] if isinstance(item.prompt, str) else item.prompt
    if not isinstance(task, str) or not task:
        raise ValueError(f"field 'task' must be a text that is not empty, got {cut(task)}")
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    turns = spoken.count("assistant")
    if not turns or spoken != ["user", "assistant"] * turns + ["user"] * (len(spoken) % 2):
        message = "must be a list of messages: a system's or none, then user and assistant in turn"
        raise ValueError(f"field 'messages' {message}, got the roles {roles}")
    shares = passed if isinstance(passed, list) else []
    if len(shares) != turns or not all(_is_share(x) for x in shares):
        message = f"must list a number from 0 to 1 for each of the {turns} assistant's messages"
        raise ValueError(f"field 'passed' {message}, got {cut(passed)}")
    lines = [] if public is None else public
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"field 'public' must list texts, got {cut(public)}")
    shown = "\n".join(m["content"] for m in messages if m["role"] == "user")
    for line in lines:
        if line not in shown:
            raise ValueError(f"field 'public': no user's message shows {line!r}")
    further = {name: value for name, value in columns.items() if name not in _OWN}
    return Dialogue(task=task, messages=messages, passed=shares, public=lines, columns=further)


def _is_share(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1


def _turns(
    dialogue: Dialogue, fits: Callable[[Sequence[Message]], bool], swapped: float
) -> Iterator[Row]:
    """The prompts of one dialogue, those of an earlier turn first."""
    text = json.dumps([[m["role"], m["content"]] for m in dialogue.messages])
    swap = swapped_outputs(dialogue.public) if content_hash(text) < swapped * 2.0**64 else {}
    messages = [_swapped(message, swap) for message in dialogue.messages]
    passes = [share >= 1 for share in dialogue.passed]
    for turn, end in enumerate(dialogue.ends[1 : TURNS + 1], start=1):
        if passes[max(turn - 2, 0) : turn] == [True, True] or not fits(messages[:end]):
            return
        yield _row(dialogue, messages[:end], turn, swapped=bool(swap))


def _swapped(message: Message, swap: Mapping[str, str]) -> Message:
    """A user's message with other outputs in the assertions that it shows."""
    if message["role"] != "user" or not swap:
        return message
    lines = "|".join(re.escape(line) for line in sorted(swap, key=len, reverse=True))
    content = re.sub(rf"(?:{lines})(?![\w.])", lambda line: swap[line[0]], message["content"])
    return {**message, "content": content}


def _row(dialogue: Dialogue, prompt: Sequence[Message], turn: int, *, swapped: bool) -> Row:
    best = max(dialogue.passed[:turn], default=0.0)
    own = {"prompt": list(prompt), "prev_best": best, "turn": turn, "swapped": swapped}
    return {**dialogue.columns, **own}
