"""Verdicts on the claims of `claims.py`: what recorded runs come to, as text, tables and plots."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from claims import CLAIMS, SHOWN, Claim, Condition, Runs, accuracy
from records import Record, draw_interval, failures, interval, plus_minus

mpl.use("agg")
import matplotlib.pyplot as plt

LAST = 5
"""Steps at the end of a run over which rewards are averaged."""


def numbers(condition: Condition, records: Sequence[Record]) -> list[float]:
    """The condition's number for every seed whose runs, those that it looks at, did not fail."""
    good = [record for record in records if "failure" not in record]
    found = list[float]()
    for seed in sorted({record["seed"] for record in good}):
        runs: Runs = {(r["task"], r["arm"]): r for r in good if r["seed"] == seed}
        if all(cell in runs for cell in condition.cells):
            found.append(condition.value(runs))
    return found


def judge(condition: Condition, found: Sequence[float]) -> str:
    """`yes` or `no`, with `unclear` where the 95 % interval holds the bound; or `not run`."""
    if not found:
        return "not run"
    mean, half = interval(found)
    met = condition.least <= mean <= condition.most
    bound = condition.least if math.isfinite(condition.least) else condition.most
    unclear = not half < abs(mean - bound)  # nan of a single seed is unclear
    return ("yes" if met else "no") + (", unclear" if unclear else "")


def verdict(judged: Sequence[str]) -> str:
    """What the conditions of an arm come to: a claim holds if all are met."""
    if "not run" in judged:
        return "not run"
    if "no" in judged:
        return "fails"
    holds = all(word.startswith("yes") for word in judged)
    unclear = any(word.endswith("unclear") for word in judged)
    return ("holds" if holds else "fails") + (", unclear" if unclear else "")


def page(names: Sequence[str], records: Sequence[Record]) -> str:
    """The verdicts, and the tables of every claim of which a run is recorded."""
    lines = ["| claim | method | verdict | seeds |", "|---|---|---|---|"]
    details = list[str]()
    for name in names:
        claim, conditions = CLAIMS[name], list[str]()
        for arm, rules in claim.rules.items():
            measured_of = [numbers(rule, records) for rule in rules]
            judged = [judge(*pair) for pair in zip(rules, measured_of, strict=True)]
            seeds = min(map(len, measured_of))
            lines.append(f"| {claim.text} | {arm} | {verdict(judged)} | {seeds} |")
            conditions += [
                f"| {arm} | {rule.text} | {_bound(rule)} | {plus_minus(found)} | {word} |"
                for rule, found, word in zip(rules, measured_of, judged, strict=True)
            ]
        if name not in begun(names, records):
            continue
        details += ["", f"**{claim.text}**", "", f"![{name}](images/claim_{name}.png)", ""]
        details += [*table(claim, records), "", "| method | condition | needed | measured | met |"]
        details += ["|---|---|---|---|---|", *conditions]
    return "\n".join([*lines, *details])


def begun(names: Sequence[str], records: Sequence[Record]) -> list[str]:
    """The claims of whose own arms a run is recorded."""
    there = {(record["task"], record["arm"]) for record in records}
    own = lambda name: {cell for cell in CLAIMS[name].runs if cell[1] != "grpo"}  # noqa: E731
    return [name for name in names if own(name) & there]


def _bound(rule: Condition) -> str:
    if math.isfinite(rule.least):
        return f"at least {rule.least:g}"
    return f"at most {rule.most:g}"


def table(claim: Claim, records: Sequence[Record]) -> list[str]:
    """Means over the seeds that did not fail, with 95 % intervals, and the failures."""
    lines = [
        f"| task | method | accuracy before | accuracy | at its end | length before | length |"
        f" drawn, thousands | groups with a gradient | rewards, last {LAST} steps | seconds |"
        " failed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, arm in claim.runs:
        runs = [run for run in records if (run["task"], run["arm"]) == (task, arm)]
        if not runs:
            lines.append(f"| {task} | {arm} |{' not run |' * 10}")
            continue
        good = [run for run in runs if "failure" not in run]
        cells = [
            *(_mean(good, "accuracy_before"), plus_minus(_read(task, arm, records))),
            *(_each(good, "accuracy"), _mean(good, "length_before", 1), _each(good, "length", 1)),
            *(_mean(good, "tokens", 0, 1e-3), _each(good, "useful"), _rewards(good)),
            *(f"{np.mean([run['seconds'] for run in runs]):.0f}", failures(runs)),
        ]
        lines.append(f"| {task} | {arm} | {' | '.join(cells)} |")
    return lines


def _read(task: str, arm: str, records: Sequence[Record]) -> list[float]:
    """An arm's accuracy at GRPO's tokens, by seed."""
    rule = Condition(
        text="", cells=((task, "grpo"), (task, arm)), value=lambda runs: accuracy(runs, task, arm)
    )
    return numbers(rule, records)


def _each(good: Sequence[Record], field: str, digits: int = 3) -> str:
    return plus_minus([run[field] for run in good], f".{digits}f")


def _mean(good: Sequence[Record], field: str, digits: int = 3, factor: float = 1.0) -> str:
    return f"{factor * np.mean([run[field] for run in good]):.{digits}f}" if good else "-"


def _rewards(good: Sequence[Record]) -> str:
    """The mean of every reward."""
    names = list(good[0]["rewards"]) if good else []
    means = [float(np.mean([run["rewards"][name] for run in good])) for name in names]
    return ", ".join(f"{name} {mean:.3f}" for name, mean in zip(names, means, strict=True)) or "-"


def plot(claim: Claim, records: Sequence[Record], path: Path) -> None:
    """Draws accuracy against drawn tokens, a line a run, and what the claim is about by arm."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    good = [run for run in records if "failure" not in run]
    for height, (task, arm) in enumerate(claim.runs):
        runs = [run for run in good if (run["task"], run["arm"]) == (task, arm)]
        for i, run in enumerate(runs):
            tokens, scores = zip(*run["curve"], strict=True)
            label = f"{arm} on {task}" if i == 0 else None
            left.plot(np.divide(tokens, 1e3), scores, color=f"C{height}", lw=1, label=label)
        draw_interval(right, [run[claim.shows] for run in runs], height)
    left.set(xlabel="thousands of tokens drawn", ylabel="held-out greedy accuracy", ylim=(0, 1))
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=7)
    right.set(xlabel=SHOWN[claim.shows])
    right.set_yticks(range(len(claim.runs)), [f"{arm} on {task}" for task, arm in claim.runs])
    right.invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)
