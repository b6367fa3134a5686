"""All rows of a config's data looked at before a run: `jgrpo data check CONFIG`.

A run reads its data once and stops at the first bad row; a check reports everything that is wrong
with both splits, and what would not stop the run but deserves a look. Nothing is trained.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from transformers import PreTrainedTokenizerBase

from jgrpo.config import Config
from jgrpo.data import sources
from jgrpo.data.chat import tokenize
from jgrpo.data.rows import BadRow
from jgrpo.data.tasks import Task, load_task, parse_task
from jgrpo.rewards.score import build, close
from jgrpo.types import Example

SHOWN = 50
"""Findings that are printed; the rest is counted."""
GENERATED_SHOWN = 1000
"""Problems of a generated task that are looked at; there is no end of them."""
_ARGUMENTS = ("prompts", "completions", "completion_ids", "answer", "solution")
"""What every reward gets, whatever the fields of the data."""

Error: TypeAlias = Literal[
    "bad row", "no rows", "prompt", "missing column", "no solution", "reward"
]
Remark: TypeAlias = Literal["in both splits", "gaps in column", "empty answer", "repeated"]
STOPS_A_RUN = frozenset(get_args(Error))
"""Kinds of findings with which training would fail, at the start or when it meets the row."""

Placed: TypeAlias = Sequence[tuple[str, Example]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
      kind: what sort of thing; `STOPS_A_RUN` says which are errors.
      place: where, such as `train.jsonl:12`, or the split.
      message: what is the matter, and what to do.
    """

    kind: Error | Remark
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.message}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a check has found.

    Attributes:
      task: name of the task.
      num_rows: rows by split, bad ones left out.
      num_prompts: different prompts by split.
      longest_prompt_tokens: of all prompts that could be tokenised; 0 if there is none.
      findings: errors first, then in the order of the data.
    """

    task: str
    num_rows: Mapping[str, int]
    num_prompts: Mapping[str, int]
    longest_prompt_tokens: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings would stop a run."""
        return sum(finding.kind in STOPS_A_RUN for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """The number of findings of each kind."""
        return dict(collections.Counter(finding.kind for finding in self.findings))

    def summary(self) -> str:
        """A few lines that end in whether a run can read the data."""
        splits = [
            f"{name} {self.num_rows[name]:,} rows ({self.num_prompts[name]:,} different prompts)"
            for name in self.num_rows
        ]
        found = [f"{kind}: {count:,}" for kind, count in self.counts().items()]
        verdict = f"{self.errors:,} would stop a run" if self.errors else "nothing stops a run"
        return "\n".join(
            [
                f"{self.task}: {', '.join(splits)}",
                f"longest prompt: {self.longest_prompt_tokens:,} tokens",
                f"found: {', '.join(found) or 'nothing amiss'}; {verdict}",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dataclasses.asdict(self) | {"errors": self.errors, "counts": self.counts()}


def check(cfg: Config, tokenizer: PreTrainedTokenizerBase) -> DataReport:
    """Reads both splits of a config's task and looks at every row.

    Args:
      cfg: the config; `data`, `reward` and `method` say what a row must have.
      tokenizer: of the config's model.

    Raises:
      ValueError: for settings of the task that no data could satisfy.
      FileNotFoundError: if a file of the task is missing.
      ImportError: naming the extra, if a package is not installed.
    """
    findings: list[Finding] = []
    task, splits = _read(cfg, findings)
    longest = 0
    for split, rows in splits.items():
        if not rows:
            findings.append(Finding("no rows", split, "no row of this split can be used"))
        longest = max(longest, _longest_prompt(cfg, tokenizer, rows, findings))
        findings += _repeated(rows)
        if cfg.method.source == "reference":
            findings += _unsolved(rows)
    findings += _in_both(splits)
    findings += _columns(cfg, task, splits)
    return DataReport(
        task=cfg.data.task,
        num_rows={split: len(rows) for split, rows in splits.items()},
        num_prompts={split: len(_by_prompt(rows)) for split, rows in splits.items()},
        longest_prompt_tokens=longest,
        findings=tuple(sorted(findings, key=lambda finding: finding.kind not in STOPS_A_RUN)),
    )


def _read(cfg: Config, findings: list[Finding]) -> tuple[Task, dict[str, Placed]]:
    """The task and the usable rows of both splits with their places."""
    parsed = parse_task(cfg.data)
    if parsed is None:
        task = load_task(cfg.data)
        sides = {"train": task.train, "heldout": task.heldout}
        return task, {
            split: [(f"{split} {i}", rows[i]) for i in range(min(len(rows), GENERATED_SHOWN))]
            for split, rows in sides.items()
        }
    train = _usable(parsed.train, findings)
    if parsed.heldout is not None:
        return parsed.task, {"train": train, "heldout": _usable(parsed.heldout, findings)}
    places = {id(example): place for place, example in train}
    try:
        halves = sources.split(tuple(example for _, example in train), cfg.data.path)
    except ValueError as error:
        if train:
            findings.append(Finding("no rows", "heldout", str(error)))
        return parsed.task, {"train": train}
    learned, held = ([(places[id(example)], example) for example in half] for half in halves)
    return parsed.task, {"train": learned, "heldout": held}


def _usable(parsed: sources.Parsed, findings: list[Finding]) -> Placed:
    rows = []
    for place, item in parsed:
        if isinstance(item, BadRow):
            findings.append(Finding("bad row", place, item.message))
        else:
            rows.append((place, item))
    return rows


def _longest_prompt(
    cfg: Config, tokenizer: PreTrainedTokenizerBase, rows: Placed, findings: list[Finding]
) -> int:
    """Tokenises every prompt; returns the length of the longest."""
    data, longest = cfg.data, 0
    for place, example in rows:
        try:
            ids = tokenize(
                tokenizer, example.prompt, chat=data.chat, system_prompt=data.system_prompt
            )
        except ValueError as error:
            findings.append(Finding("prompt", place, str(error)))
            continue
        longest = max(longest, len(ids))
        if not 0 < len(ids) <= data.max_prompt_tokens:
            message = f"must have 1 to {data.max_prompt_tokens} tokens, got {len(ids)}; "
            hint = "raise data.max_prompt_tokens or take it out of the data"
            findings.append(Finding("prompt", place, message + hint))
    return longest


def _by_prompt(rows: Placed) -> dict[str, list[str]]:
    """The places of each prompt."""
    found: dict[str, list[str]] = {}
    for place, example in rows:
        found.setdefault(sources.prompt_text(example), []).append(place)
    return found


def _repeated(rows: Placed) -> Iterator[Finding]:
    for first, *others in _by_prompt(rows).values():
        for place in others:
            yield Finding("repeated", place, f"the same prompt as at {first}")


def _in_both(splits: Mapping[str, Placed]) -> Iterator[Finding]:
    train = _by_prompt(splits["train"])
    for prompt, places in _by_prompt(splits.get("heldout", ())).items():
        if prompt in train:
            message = f"this held-out prompt is also learned from, at {train[prompt][0]}"
            yield Finding("in both splits", places[0], message)


def _unsolved(rows: Placed) -> Iterator[Finding]:
    for place, example in rows:
        if example.solution is None:
            message = "the method trains on worked solutions; add a text field 'solution'"
            yield Finding("no solution", place, message)


def _columns(cfg: Config, task: Task, splits: Mapping[str, Placed]) -> Iterator[Finding]:
    """What the rewards need and the rows lack."""
    try:
        rewards = build(cfg.reward.functions, task, cfg.reward)
    except ValueError as error:
        yield Finding("reward", "reward.functions", str(error).removeprefix("reward.functions: "))
        return
    close(rewards)
    readers: dict[str, list[str]] = {}
    for reward in rewards:
        for column in sorted(reward.needs):
            readers.setdefault(column, []).append(repr(reward.name))
    for split, rows in splits.items():
        for column, names in readers.items():
            if column == "answer":
                yield from _unanswered(cfg, split, rows, ", ".join(names))
            elif column not in _ARGUMENTS:
                yield from _gaps(split, rows, column, f"{column!r} (for {', '.join(names)})")


def _gaps(split: str, rows: Placed, column: str, named: str) -> Iterator[Finding]:
    lacking = [place for place, example in rows if example.columns.get(column) is None]
    if rows and not any(column in example.columns for _, example in rows):
        fields = ", ".join(rows[0][1].columns) or "none"
        yield Finding("missing column", split, f"no row has the field {named}; fields: {fields}")
    elif lacking:
        message = f"{len(lacking)} of {len(rows)} rows lack {named}, which is None there"
        yield Finding("gaps in column", lacking[0], message)


def _unanswered(cfg: Config, split: str, rows: Placed, names: str) -> Iterator[Finding]:
    empty = [place for place, example in rows if not example.answer.strip()]
    if empty:
        count = f"{len(empty)} of {len(rows)} rows of {split} have no answer for reward {names}"
        hint = f"it is read from the field {cfg.data.columns.answer!r} (data.columns.answer)"
        yield Finding("empty answer", empty[0], f"{count}; {hint}")
