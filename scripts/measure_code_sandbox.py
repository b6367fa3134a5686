"""Runs the reference solutions of HumanEval and MBPP in a sandbox and counts which pass.

    python scripts/measure_code_sandbox.py --sandbox monty ../shared/data

A solution that fails says what the sandbox lacks, or where it is stricter than the paper's harness.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from jgrpo.config import DataConfig
from jgrpo.data.tasks import load_task
from jgrpo.rewards.code import Grade, grade, instrument, program_of
from jgrpo.rewards.plain import Limits
from jgrpo.rewards.sandbox import Sandbox, find_sandbox
from jgrpo.types import Example

FILES = {"humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/mbpp.jsonl.gz"}


def main() -> None:
    """Prints one line per solution that fails, and the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where humaneval/ and mbpp/ lie")
    parser.add_argument("--sandbox", choices=("monty", "bwrap"), default="monty")
    parser.add_argument("--task", choices=tuple(FILES), help="one task only")
    parser.add_argument("--time-limit-s", type=float, default=3.0)
    options = parser.parse_args()
    place, limits = find_sandbox(options.sandbox), Limits(time_s=options.time_limit_s)
    for name in [options.task] if options.task else FILES:
        cfg = DataConfig(task=name, path=str(options.folder / FILES[name]))
        task = load_task(cfg)
        outcomes: Counter[str] = Counter()
        slowest = 0.0
        for source in (task.train, task.heldout):
            for index in range(len(source)):
                example, begun = source[index], time.monotonic()
                found = _grade(example, place, limits)
                slowest = max(slowest, time.monotonic() - begun)
                outcome = "passes" if found.score("all") == 1.0 else _reason(found)
                outcomes[outcome] += 1
                if outcome != "passes":
                    print(f"{name} {example.columns['task_id']}: {found.detail or outcome}")
        total = outcomes.total()
        listed = ", ".join(f"{count} {what}" for what, count in outcomes.most_common())
        print(f"{name} under {options.sandbox}: {listed}; of {total}; slowest {slowest:.1f} s")


def _grade(example: Example, place: Sandbox, limits: Limits) -> Grade:
    names, stub = example.columns["functions"], example.columns["stub"]
    source = program_of(example.solution or "", names, stub)
    return grade(source, instrument(example.columns["tests"], names), place, limits, stop=True)


def _reason(found: Grade) -> str:
    if found.tests_unsupported:
        return "tests unsupported"
    return found.error or ("wrong value" if found.failed else "tests fail")


if __name__ == "__main__":
    main()
