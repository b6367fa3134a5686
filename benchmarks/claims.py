"""What the rollout-side methods claim, as records: tasks, arms, and what must come out.

A task is what all arms on it share. An arm is a method with what the method itself cannot do
without on tasks this small: lengths in tokens, numbers of levels, a bound on what it draws. Nobody
has a rate, a group size or a budget of its own; there is one of each. `{out}` in a setting is the
folder of the program (`reproduce.py`), which makes the bases named here and, by `lessons.py`, the
data.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from lessons import MARK
from records import Record

Cell: TypeAlias = tuple[str, str]
"""A task and an arm."""
Runs: TypeAlias = Mapping[Cell, Record]
"""Those of one seed."""

COMMON = (
    "method.penalty=none",  # of every row: from a weak base the reference is nothing to stay near
    "method.kl_coef=0",
    "data.num_prompts_per_step=16",
    "rollout.group_size=8",
    "optim.minibatches=2",
    "optim.packing=false",  # fewer programs to compile
    "run.steps=30",
    "eval.every=10",
    "eval.num_prompts=256",
    "eval.batch_prompts=256",
    "checkpoint.every=0",
    "log.samples_every=0",
)
"""What all arms on all tasks share, besides the quickstart's rate of 3e-4."""
BOTH = "reward.functions=[{name: tagged_number}, {name: regex_format}]"
FILES = ("data.task=jsonl", "data.options={}", "reward.functions=[{name: tagged_number}]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Weights that a task begins with: a supervised run of a recipe."""

    config: str
    settings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on; `base` is `tiny`, the embedded model, or one of `BASES`."""

    settings: tuple[str, ...]
    base: str = "tiny"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """A number of the runs of one seed, and what it must be.

    Attributes:
      text: what it is.
      cells: the runs that it looks at, by task and arm.
      value: computes it.
      least: what its mean over the seeds must reach.
      most: what its mean must not exceed.
    """

    text: str
    cells: tuple[Cell, ...]
    value: Callable[[Runs], float]
    least: float = -math.inf
    most: float = math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What some methods claim.

    Attributes:
      text: the claim.
      runs: the runs that decide it.
      rules: conditions by arm; the claim of an arm holds if all are met.
      shows: the field of a record that the plot shows beside the accuracy.
    """

    text: str
    runs: tuple[Cell, ...]
    rules: Mapping[str, tuple[Condition, ...]]
    shows: str


SHOWN: Mapping[str, str] = {
    "length": "tokens of a held-out greedy completion",
    "useful": "share of groups with a gradient",
    "equal": "share of groups of equal rewards",
    "reward": "mean outcome in training",
}
"""The fields that a plot may show."""

BASES: Mapping[str, Base] = {
    # Works everything out up to three times; half of its solutions forget every carry.
    "wordy": Base(
        config="sft_overthink_tiny.yaml",
        settings=("data.options.careless=0.5", "checkpoint.every=0", "log.samples_every=0"),
    ),
    # Hardly ever right by itself; more often under a hint, or behind a draft (`lessons.py`).
    "starved": Base(
        config="sft_tiny.yaml",
        settings=(
            *("model.init=weights", *FILES, "data.path={out}/lessons.jsonl"),
            *("data.heldout_path={out}/hard_heldout.jsonl", "data.max_prompt_tokens=96"),
            *("data.num_prompts_per_step=16", "rollout.max_completion_tokens=48"),
            *("optim.lr=3e-3", "optim.warmup_steps=10", "run.steps=300", "eval.num_prompts=64"),
            *("eval.samples_per_prompt=0", "checkpoint.every=0", "log.samples_every=0"),
        ),
    ),
}
OVERTHINK = (
    *("data.task=overthink", "data.options={}", "rollout.max_completion_tokens=144"),
    *("rollout.segment_mark=;", "rollout.stratum_mark=;", 'context.exit_phrase="#"'),
)
TASKS: Mapping[str, Task] = {
    "sums": Task(settings=("rollout.max_completion_tokens=56",)),
    "wordy": Task(base="wordy", settings=OVERTHINK),
    "two_rewards": Task(
        base="wordy",
        settings=(
            *OVERTHINK,
            "reward.functions=[{name: tagged_number}, {name: length, options: {max_tokens: 144}}]",
        ),
    ),
    "hard": Task(
        base="starved",
        settings=(
            *(*FILES, "data.path={out}/hard.jsonl", "data.heldout_path={out}/hard_heldout.jsonl"),
            *("data.max_prompt_tokens=48", "rollout.max_completion_tokens=48"),
            *("context.step_mark=;", 'context.hint="{hint}{prompt}"'),
            *('context.draft="{draft};{prompt}"', 'context.hinted="{hint}{prompt}"'),
            f'context.hinter="{MARK.join(["{draft}", "{solution}", "{prompt}"])}"',
            'context.hint_form="^([^#]*;)"',  # whole steps
        ),
    ),
    "mixed": Task(
        settings=(
            *(*FILES, "data.path={out}/mixed.jsonl", "data.heldout_path={out}/mixed_heldout.jsonl"),
            *("data.max_prompt_tokens=24", "rollout.max_completion_tokens=72"),
        ),
    ),
}

GUIDED = ("method.guidance_tokens=16", "method.guidance_max_tokens=32")
SHARED = ("method.rollouts_max=32",)
ARMS: Mapping[str, tuple[str, ...]] = {
    "grpo": ("method=grpo",),
    # Two lines of work and the answer: what the task needs.
    "ws_grpo": ("method=ws_grpo", "method.step_low=3", "method.step_high=3"),
    "s_grpo": ("method=s_grpo",),
    "grpo_lambda": ("method=grpo_lambda",),
    "train_long_think_short": (
        *("method=train_long_think_short", BOTH, "method.budget_start_tokens=64"),
        # Its model reads no words: the budget is paid for and not told.
        *("method.budget_every_steps=10", "method.plan=uniform"),
    ),
    "g2rpo_a": ("method=g2rpo_a", *GUIDED),
    "g2rpo_fixed": ("method=g2rpo_a", *GUIDED, "method.guidance=constant"),
    # Its warm-up is the paper's 15 % of the run, rounded up.
    "scaf_grpo": ("method=scaf_grpo", "method.hint_levels=3", "method.hint_after_steps=5"),
    "guide_grpo": ("method=guide_grpo", "method.dynamic_max_rounds=1"),
    "igrpo": ("method=igrpo", "rollout.group_size=4"),  # 4 drafts and 4 more: as many tokens
    "hill": ("method=hill", "method.hints=2", "optim.role_lr=3e-4"),  # the rate of all
    "knapsack": ("method=knapsack", *SHARED),
    "v0": ("method=v0", *SHARED),
    "v0_5": ("method=v0_5", "method.prior_noise=0.25"),  # of rewards 0 and 1
    "xrpo": ("method=xrpo", *SHARED),
    "vspo": ("method=vspo",),
    "dapo": ("method=dapo", "method.overlong_buffer_tokens=8", "method.dynamic_max_rounds=3"),
    "gdpo": ("method=gdpo",),
    "fgrpo": ("method=fgrpo", "method.dual_thresholds=[0.6]"),
    "stratified_grpo": ("method=stratified_grpo",),
    "tempo": ("method=tempo",),
}


def accuracy(runs: Runs, task: str, arm: str) -> float:
    """Held-out accuracy when the arm has drawn as many tokens as GRPO in all its run.

    Between two evaluations it is interpolated; an arm that never draws as many is read at its end.
    So nobody has more tokens than GRPO, nor more updates.
    """
    tokens, scores = zip(*runs[task, arm]["curve"], strict=True)
    return float(np.interp(runs[task, "grpo"]["tokens"], tokens, scores))


def rate(record: Record) -> float:
    """Held-out accuracy that a million drawn tokens have brought."""
    return (record["accuracy"] - record["accuracy_before"]) / record["tokens"] * 1e6


def _gain(task: str, arm: str, least: float, over: str = "grpo") -> Condition:
    return Condition(
        text=f"accuracy above {over} on {task}",
        cells=((task, arm), *_on(task, over)),
        value=lambda runs: accuracy(runs, task, arm) - accuracy(runs, task, over),
        least=least,
    )


def _over_grpo(
    task: str, arm: str, text: str, value: Callable[[Record], float], least: float = 0.0
) -> Condition:
    """How much more of something an arm has than GRPO."""
    return Condition(
        text=text,
        cells=_on(task, arm),
        value=lambda runs: value(runs[task, arm]) - value(runs[task, "grpo"]),
        least=least,
    )


def _saved(task: str, arm: str, least: float) -> Condition:
    return Condition(
        text="share of GRPO's tokens saved, held-out completion",
        cells=_on(task, arm),
        value=lambda runs: 1 - runs[task, arm]["length"] / runs[task, "grpo"]["length"],
        least=least,
    )


def _useful(arm: str) -> tuple[Condition, ...]:
    more = "share of groups with a gradient above GRPO's"
    return (
        _over_grpo("mixed", arm, more, lambda run: run["useful"], 0.05),
        _over_grpo("mixed", arm, "accuracy per million tokens above GRPO's", rate),
    )


def _more_reward(task: str, arm: str) -> tuple[Condition, ...]:
    text = "mean outcome in training above GRPO's"
    return _over_grpo(task, arm, text, lambda run: run["reward"]), _gain(task, arm, 0.0)


def _brief(arm: str, text: str, value: Callable[[float], float]) -> Condition:
    """Compares a function of the mean reward for brevity at the end with GRPO's."""
    return _over_grpo("two_rewards", arm, text, lambda run: value(run["rewards"]["length"]))


def _on(task: str, *arms: str) -> tuple[Cell, ...]:
    return tuple((task, arm) for arm in ("grpo", *arms))


SHORT = ("s_grpo", "grpo_lambda", "train_long_think_short")
HELPED = ("scaf_grpo", "guide_grpo", "hill", "igrpo")
SELECTIVE = ("knapsack", "v0", "v0_5", "xrpo", "vspo", "dapo")
_STARVED = Condition(
    text="base pass@1 on hard",
    cells=_on("hard"),
    value=lambda runs: runs["hard", "grpo"]["first"],
    most=0.05,
)
_MOST_WHERE_STARVED = Condition(
    text="gain over GRPO on hard above that on sums",
    cells=(*_on("hard", "g2rpo_a"), *_on("sums", "g2rpo_a")),
    value=lambda runs: sum(
        sign * (accuracy(runs, task, "g2rpo_a") - accuracy(runs, task, "grpo"))
        for task, sign in (("hard", 1), ("sums", -1))
    ),
    least=0.0,
)
CLAIMS: Mapping[str, Claim] = {
    "ws_grpo": Claim(
        text="WS-GRPO: substantially shorter rollouts at competitive accuracy",
        runs=_on("wordy", "ws_grpo"),
        rules={"ws_grpo": (_saved("wordy", "ws_grpo", 0.25), _gain("wordy", "ws_grpo", -0.02))},
        shows="length",
    ),
    "g2rpo_a": Claim(
        text="G2RPO-A beats GRPO on small models, most where GRPO starves",
        runs=(*_on("hard", "g2rpo_a", "g2rpo_fixed"), *_on("sums", "g2rpo_a")),
        rules={
            "g2rpo_a": (
                _STARVED,
                _gain("hard", "g2rpo_a", 0.05),
                _gain("hard", "g2rpo_a", 0.0, over="g2rpo_fixed"),
                _MOST_WHERE_STARVED,
            )
        },
        shows="useful",
    ),
    "shorter": Claim(
        text="S-GRPO, GRPO-lambda, Train Long Think Short: shorter at no loss",
        runs=_on("wordy", *SHORT),
        rules={a: (_saved("wordy", a, 0.1), _gain("wordy", a, -0.02)) for a in SHORT},
        shows="length",
    ),
    "helped": Claim(
        text="Scaf-GRPO, Guide-GRPO, HiLL, iGRPO: learn what plain GRPO cannot",
        runs=_on("hard", *HELPED),
        rules={
            arm: (
                _gain("hard", arm, 0.05),
                _over_grpo("hard", arm, "fewer groups of equal rewards", lambda r: -r["equal"]),
            )
            for arm in HELPED
        },
        shows="equal",
    ),
    "useful": Claim(
        text="Knapsack, V0, V0.5, XRPO, VSPO, DAPO: more useful groups for the same tokens",
        runs=_on("mixed", *SELECTIVE),
        rules={arm: _useful(arm) for arm in SELECTIVE},
        shows="useful",
    ),
    "two_rewards": Claim(
        text="GDPO, FGRPO against the sum of two rewards, for the answer and for brevity",
        runs=_on("two_rewards", "gdpo", "fgrpo"),
        rules={
            "gdpo": (
                _gain("two_rewards", "gdpo", 0.0),
                _brief("gdpo", "reward for brevity above that of the sum", lambda mean: mean),
            ),
            "fgrpo": (
                _gain("two_rewards", "fgrpo", -0.02),
                _brief("fgrpo", "nearer to the bound of 0.6", lambda mean: min(mean - 0.6, 0.0)),
            ),
        },
        shows="length",
    ),
    "stratified": Claim(
        text="Stratified GRPO on heterogeneous groups: more reward in training, and accuracy",
        runs=_on("wordy", "stratified_grpo"),
        rules={"stratified_grpo": _more_reward("wordy", "stratified_grpo")},
        shows="reward",
    ),
    "tempo": Claim(
        text="TEMPO on completions that branch: more reward in training, and accuracy",
        runs=_on("sums", "tempo"),
        rules={"tempo": _more_reward("sums", "tempo")},
        shows="reward",
    ),
}
