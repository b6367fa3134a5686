"""Rewards that a judge gives: rubrics, rules, a score of the reasoning.

A judge is a model behind an HTTP interface (`endpoint.py`), or, with `judge: rules`, a set of plain
rules on the text, which needs no server. Letters: K criteria of a completion. What a judge says
that cannot be read counts as "not satisfied"; a judge that cannot be reached is a failure of the
reward (docs/rewards.md). Standard library only.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias, runtime_checkable

from annotated_types import Ge, Gt, Le

from jgrpo.rewards.endpoint import Endpoint
from jgrpo.rewards.text import Completion, text

JudgeName: TypeAlias = Literal["http", "rules"]
Seconds: TypeAlias = Annotated[float, Gt(0.0)]
Count: TypeAlias = Annotated[int, Ge(1)]

_VERDICT = re.compile(
    r"(?im)^\W*(\d+)\W+(yes|no|not applicable|n/a|satisfied|not satisfied|true|false)\b"
)
_SATISFIED = ("yes", "true", "satisfied", "not applicable", "n/a")
_SCORE = re.compile(r"(?i)score\W*([0-9]+(?:\.[0-9]+)?)")
_RULE = re.compile(r"(contains|lacks|matches|ends with|at most|at least)\s*:?\s*(.+)", re.DOTALL)

CRITERIA_PROMPT = """\
You judge an answer by criteria. Be concise: one line for each criterion, with its number and \
"yes", "no" or "not applicable", and nothing else.

Question:
{question}

Answer:
{completion}

Criteria:
{criteria}"""
SCORE_PROMPT = """\
You judge an answer. {instruction}
Reply with one line, "score: " and a number from 0 to 10.

Question:
{question}

Answer:
{completion}"""
DEFAULT_INSTRUCTION = (
    "Judge the reasoning: is every step correct, needed and understandable? The final answer alone "
    "does not count."
)


@runtime_checkable
class Judge(Protocol):
    """Says whether criteria hold, and how good a completion is."""

    def verdicts(self, question: str, completion: str, criteria: Sequence[str]) -> list[bool]:
        """For each criterion, whether the completion satisfies it."""
        ...

    def score(self, question: str, completion: str, instruction: str) -> float | None:
        """How good the completion is, from 0 to 1; None if the judge gave no number."""
        ...


@dataclasses.dataclass(frozen=True)
class ModelJudge:
    """A language model as judge.

    Attributes:
      endpoint: where it is asked.
    """

    endpoint: Endpoint

    def verdicts(self, question: str, completion: str, criteria: Sequence[str]) -> list[bool]:
        """One request for all criteria."""
        listed = "\n".join(f"{i}. {line}" for i, line in enumerate(criteria, start=1))
        prompt = CRITERIA_PROMPT.format(question=question, completion=completion, criteria=listed)
        return read_verdicts(self.endpoint.ask(_said(prompt)), len(criteria))

    def score(self, question: str, completion: str, instruction: str) -> float | None:
        """One request; 10 of 10 is 1."""
        prompt = SCORE_PROMPT.format(
            question=question, completion=completion, instruction=instruction
        )
        return read_score(self.endpoint.ask(_said(prompt)))


@dataclasses.dataclass(frozen=True)
class RuleJudge:
    """Plain rules in the place of a model: for tests, and for criteria that are rules anyway.

    A criterion is `contains: TEXT`, `lacks: TEXT`, `ends with: TEXT`, `matches: REGEX`,
    `at most: N words` or `at least: N words`; any other is not satisfied.
    """

    def verdicts(self, question: str, completion: str, criteria: Sequence[str]) -> list[bool]:
        """Applies the rules."""
        return [_holds(completion, criterion) for criterion in criteria]

    def score(self, question: str, completion: str, instruction: str) -> float | None:
        """Share of the rules, one on each line of the instruction, that hold."""
        rules = _lines(instruction)
        return share(self.verdicts(question, completion, rules)) if rules else None


def read_verdicts(reply: str, count: int) -> list[bool]:
    r"""Reads lines such as `2. yes`; a criterion without one is not satisfied.

    "Not applicable" counts as satisfied. Of two lines for one criterion the first counts.

    Example:
      >>> read_verdicts("1. Yes\n2: no\n- 3) not applicable", 4)
      [True, False, True, False]
    """
    said: dict[int, bool] = {}
    for number, word in _VERDICT.findall(reply):
        said.setdefault(int(number), word.lower() in _SATISFIED)
    return [said.get(i, False) for i in range(1, count + 1)]


def read_score(reply: str) -> float | None:
    """Reads the last `score: N`, N from 0 to 10, as a number from 0 to 1; None without one.

    Example:
      >>> read_score("Score: 7.5"), read_score("score: 11"), read_score("good")
      (0.75, 1.0, None)
    """
    found = _SCORE.findall(reply)
    return min(float(found[-1]), 10.0) / 10.0 if found else None


def share(verdicts: Sequence[bool | int], weights: Sequence[float | int] = ()) -> float:
    """Weighted share of the criteria that are satisfied: sum of w s over the sum of w.

    Args:
      verdicts: one for each criterion.
      weights: of the criteria; empty: all 1.

    Returns:
      From 0 to 1; 0 if the weights add up to nothing.

    References:
      RGR-GRPO, arXiv:2511.12344. Departs: none.

    Example:
      >>> [round(share(sat, [3, 2, 1]), 3) for sat in ([1, 0, 1], [1, 1, 0], [0, 0, 1])]
      [0.667, 0.833, 0.167]
    """
    factors = list(weights) or [1.0] * len(verdicts)
    total = sum(factors)
    met = sum(w for w, satisfied in zip(factors, verdicts, strict=True) if satisfied)
    return met / total if total > 0 else 0.0


def judge_rubric(
    *,
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    rubric: Sequence[Sequence[str | Mapping[str, Any]] | None],
    judge: JudgeName = "http",
    url: str = "",
    model: str = "",
    cache: str = "",
    key_env: str = "",
    timeout_s: Seconds = 8.0,
    deadline_s: Seconds = 9.0,
    retries: Annotated[int, Ge(0)] = 3,
    max_tokens: Count = 512,
    parallel: Count = 8,
) -> list[float | None]:
    """The weighted share of the prompt's own criteria that the judge finds satisfied.

    Args:
      prompts: what was asked.
      completions: what the model wrote.
      rubric: field of the data: criteria, each a text or `{text, weight}`; None: no reward.
      judge: `http`, a model at `url`; `rules`, plain rules on the text.
      url: the address before `/chat/completions`.
      model: the model's name there.
      cache: folder of the answers so far; empty: none are kept.
      key_env: environment variable that holds the server's key.
      timeout_s: seconds without a byte after which a request is given up.
      deadline_s: seconds for one answer in all; keep it below `reward.deadline_s`.
      retries: further tries after a failure that may pass.
      max_tokens: longest answer of the judge.
      parallel: requests at once, where a call has several completions.
    """
    asked = _judge(judge, url, model, cache, key_env, timeout_s, deadline_s, retries, max_tokens)

    def one(row: tuple[Any, Completion, Sequence[str | Mapping[str, Any]] | None]) -> float | None:
        prompt, completion, criteria = row
        if not criteria:
            return None
        texts = [criterion_text(c) for c in criteria]
        weights = [1.0 if isinstance(c, str) else float(c.get("weight", 1.0)) for c in criteria]
        return share(asked.verdicts(_question(prompt), text(completion), texts), weights)

    return _mapped(one, parallel, prompts, completions, rubric)


def judge_rules(
    *,
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    rules: str = "",
    offset: Annotated[float, Ge(0.0), Le(1.0)] = 0.75,
    judge: JudgeName = "http",
    url: str = "",
    model: str = "",
    cache: str = "",
    key_env: str = "",
    timeout_s: Seconds = 8.0,
    deadline_s: Seconds = 9.0,
    retries: Annotated[int, Ge(0)] = 3,
    max_tokens: Count = 512,
    parallel: Count = 8,
) -> list[float | None]:
    """The share of rules, the same for all prompts, that the judge finds satisfied, less an offset.

    AutoRule, arXiv:2506.15651: with weight 10 beside a reward model of weight 1.

    Args:
      prompts: what was asked.
      completions: what the model wrote.
      rules: one rule a line, or `@` and a file of such lines.
      offset: share of satisfied rules that is worth 0.
      judge: `http`, a model at `url`; `rules`, plain rules on the text.
      url: the address before `/chat/completions`.
      model: the model's name there.
      cache: folder of the answers so far; empty: none are kept.
      key_env: environment variable that holds the server's key.
      timeout_s: seconds without a byte after which a request is given up.
      deadline_s: seconds for one answer in all; keep it below `reward.deadline_s`.
      retries: further tries after a failure that may pass.
      max_tokens: longest answer of the judge.
      parallel: requests at once, where a call has several completions.
    """
    asked = _judge(judge, url, model, cache, key_env, timeout_s, deadline_s, retries, max_tokens)
    listed = _rules(rules)

    def one(row: tuple[Any, Completion]) -> float | None:
        verdicts = asked.verdicts(_question(row[0]), text(row[1]), listed)
        return share(verdicts) - offset

    return _mapped(one, parallel, prompts, completions)


def judge_score(
    *,
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    instruction: str = DEFAULT_INSTRUCTION,
    judge: JudgeName = "http",
    url: str = "",
    model: str = "",
    cache: str = "",
    key_env: str = "",
    timeout_s: Seconds = 8.0,
    deadline_s: Seconds = 9.0,
    retries: Annotated[int, Ge(0)] = 3,
    max_tokens: Count = 512,
    parallel: Count = 8,
) -> list[float | None]:
    """How good the judge finds the completion, from 0 to 1; no reward if it gave no number.

    The reasoning reward of Posterior-GRPO (arXiv:2508.05170), or the quality of a long answer.

    Args:
      prompts: what was asked.
      completions: what the model wrote.
      instruction: what the judge is to look at; for `judge: rules` one rule a line.
      judge: `http`, a model at `url`; `rules`, plain rules on the text.
      url: the address before `/chat/completions`.
      model: the model's name there.
      cache: folder of the answers so far; empty: none are kept.
      key_env: environment variable that holds the server's key.
      timeout_s: seconds without a byte after which a request is given up.
      deadline_s: seconds for one answer in all; keep it below `reward.deadline_s`.
      retries: further tries after a failure that may pass.
      max_tokens: longest answer of the judge.
      parallel: requests at once, where a call has several completions.
    """
    asked = _judge(judge, url, model, cache, key_env, timeout_s, deadline_s, retries, max_tokens)

    def one(row: tuple[Any, Completion]) -> float | None:
        return asked.score(_question(row[0]), text(row[1]), instruction)

    return _mapped(one, parallel, prompts, completions)


def problem(options: Mapping[str, Any]) -> str:
    """What is wrong with the options of a judge; "" if nothing is."""
    if options.get("judge", "http") == "rules":
        return ""
    missing = [name for name in ("url", "model") if not options.get(name)]
    if missing:
        return f"judge 'http' needs {' and '.join(missing)} (judge: rules needs neither)"
    if not str(options["url"]).startswith(("http://", "https://")):
        return f"url must begin with http:// or https://, got {options['url']!r}"
    return ""


def problem_of_rules(options: Mapping[str, Any]) -> str:
    """As `problem`, for rewards that must have rules."""
    try:
        found = bool(_rules(str(options.get("rules", ""))))
    except OSError as error:
        return f"rules: {error}"
    return problem(options) if found else "set rules to one rule a line, or to @FILE"


def criterion_text(criterion: str | Mapping[str, Any]) -> str:
    """What a criterion of a rubric asks, without its weight."""
    return criterion if isinstance(criterion, str) else str(criterion["text"])


def _rules(rules: str) -> list[str]:
    return _lines(Path(rules[1:]).expanduser().read_text() if rules.startswith("@") else rules)


def _lines(words: str) -> list[str]:
    return [line for line in map(str.strip, words.splitlines()) if line]


def _judge(
    name: str,
    url: str,
    model: str,
    cache: str,
    key_env: str,
    timeout_s: float,
    deadline_s: float,
    retries: int,
    max_tokens: int,
) -> Judge:
    if name == "rules":
        return RuleJudge()
    return ModelJudge(
        Endpoint(
            url=url,
            model=model,
            cache=cache,
            key_env=key_env,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            retries=retries,
            max_tokens=max_tokens,
        )
    )


def _mapped(one: Any, parallel: int, *columns: Sequence[Any]) -> list[float | None]:
    """The value of each row; several are asked for at once."""
    rows = list(zip(*columns, strict=True))
    if len(rows) == 1:
        return [one(rows[0])]
    with ThreadPoolExecutor(min(parallel, max(len(rows), 1))) as pool:
        return list(pool.map(one, rows))


def _said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _question(prompt: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt if message["role"] != "system")


def _holds(completion: str, criterion: str) -> bool:
    found = _RULE.fullmatch(criterion.strip())
    if found is None:
        return False
    kind, what = found[1], found[2].strip()
    if kind in ("at most", "at least"):
        number = re.match(r"\d+", what)
        words = len(completion.split())
        if number is None:
            return False
        limit = int(number.group())
        return words <= limit if kind == "at most" else words >= limit
    if kind == "matches":
        return re.search(what, completion) is not None
    if kind == "ends with":
        return completion.rstrip().endswith(what)
    return (what in completion) == (kind == "contains")
