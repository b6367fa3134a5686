"""The files that the tasks and bases of `claims.py` read: problems, and lessons on them.

A lesson is what a supervised base is taught: a prompt and what to write, right or careless (without
any carry or borrow). The files are functions of this file alone; a digest of them stands in every
record that depends on them.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from records import Record

from jgrpo.data import chain
from jgrpo.data.draws import Generated, chance, heldout, stream
from jgrpo.types import Example

HARD: Mapping[str, Any] = {"min_terms": 4, "max_terms": 4, "carries": "all"}
"""Four numbers, and a carry or borrow in each of the three steps."""
FIRST_OF_HARD = 100_000
"""Index of the first problem of `hard`; lessons are about those before it."""
MARK = "^"
"""Stands between the parts of what a hinter reads."""
KINDS = (*("bare",) * 6, "hint", "draft", *("bare",) * 6, "hint", "hinter")
"""What lessons are about, in turn."""
CAREFUL: Mapping[str, float] = {"bare": 0.0, "hint": 0.7, "draft": 0.3, "hinter": 1.0}
"""Chance that a lesson is right; what a hinter is to write always is."""
HELP: Mapping[str, Callable[[Example, Example], str]] = {
    "hard_half": lambda right, wrong: str(right.prompt) + _half(right),
    "hard_hint": lambda right, wrong: _first_steps(right, 1) + str(right.prompt),
    "hard_steps": lambda right, wrong: _first_steps(right, 3) + str(right.prompt),
    "hard_draft": lambda right, wrong: f"{wrong.solution};{right.prompt}",
}
"""The held-out problems of hard with some help, as prompts: begun, hinted at, or tried before."""


def write_data(out: Path) -> None:
    """Writes the files, once.

    Raises:
      ValueError: if one is there with other text.
    """
    for name, text in texts().items():
        path = out / f"{name}.jsonl"
        if not path.exists():
            path.write_text(text)
        elif path.read_text() != text:
            raise ValueError(f"{path} is of other lessons or problems; take another --out")


def digests(settings: Sequence[str]) -> dict[str, str]:
    """SHA-256, its first 16 digits, of each file that settings name as `{out}/NAME.jsonl`."""
    names = sorted(set(re.findall(r"\{out\}/(\w+)\.jsonl", " ".join(settings))))
    return {name: hashlib.sha256(texts()[name].encode()).hexdigest()[:16] for name in names}


@cache
def texts() -> Mapping[str, str]:
    """The files by name, as JSON lines."""
    mixed = chain.family(chain.Options(min_terms=2, max_terms=5))
    unseen = list(islice(_pairs(None), 256))
    files: dict[str, Iterator[Record]] = {
        "lessons": (_lesson(i, *pair) for i, pair in enumerate(islice(_pairs(0), 8192))),
        "hard": (_row(right) for right, _ in islice(_pairs(FIRST_OF_HARD), 1024)),
        "hard_heldout": (_row(right) for right, _ in unseen),
        "mixed": (_row(Generated(mixed)[i]) for i in range(128)),
        "mixed_heldout": (_row(example) for example in heldout(mixed)[:256]),
    }
    for name, helped in HELP.items():
        files[name] = iter([_row(right, helped(right, wrong)) for right, wrong in unseen])
    return {name: "".join(json.dumps(row) + "\n" for row in found) for name, found in files.items()}


def _pairs(first: int | None) -> Iterator[tuple[Example, Example]]:
    """Hard problems from an index on (None: held-out ones), right and careless, which differ."""
    right, wrong = (chain.family(chain.Options(**HARD, careless=c)) for c in (0.0, 1.0))
    if first is None:
        both = zip(heldout(right), heldout(wrong), strict=True)
    else:
        numbers = range(first, first + FIRST_OF_HARD)
        both = ((Generated(right)[i], Generated(wrong)[i]) for i in numbers)
    return ((a, b) for a, b in both if not str(b.solution).endswith(f"#{a.answer}"))


def _lesson(index: int, right: Example, wrong: Example) -> Record:
    """What is to be written for a problem: bare, under a hint, behind a draft, or as a hint."""
    turn, kind = divmod(index, len(KINDS))
    what = KINDS[kind]
    chosen = right if chance(stream(f"reproduce/lessons/{index}"), CAREFUL[what]) else wrong
    if what == "hint":
        return _row(
            chosen, _first_steps(right, 1 + index // 8 % 3) + str(right.prompt), right.answer
        )
    if what == "draft":
        return _row(chosen, f"{wrong.solution};{right.prompt}", right.answer)
    if what == "hinter":
        hint = dataclasses.replace(right, solution=_first_steps(right, 1 + turn % 2))
        return _row(hint, MARK.join([str(wrong.solution), str(right.solution), str(right.prompt)]))
    return _row(chosen, answer=right.answer)


def _row(example: Example, prompt: str = "", answer: str = "") -> Record:
    """An example as a row, with another prompt or answer where one is given."""
    asked, answer = prompt or example.prompt, answer or example.answer
    return {"prompt": asked, "answer": answer, "solution": example.solution}


def _first_steps(example: Example, count: int) -> str:
    """The first steps of a worked solution, each with its mark."""
    return "".join(f"{step};" for step in str(example.solution).split(";")[:count])


def _half(example: Example) -> str:
    """The first half of a worked solution, by characters (which are the tokens here)."""
    return str(example.solution)[: len(str(example.solution)) // 2]
