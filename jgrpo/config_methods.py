"""Rules between the settings of a method, its plan and what the run can give it.

Each of them alone would be allowed. Those of the other settings are in `config_checks.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from operator import attrgetter

from jgrpo import algo
from jgrpo.config import Config
from jgrpo.rewards.rubrics import RUBRIC

SUPPLIED = frozenset(
    {
        *("ref_logp", "behavior_logp", "lengths", "sequence_kl", "token_kl", "mean_logp"),
        *("mask", "tokens", "prompt_ids", "reference", "columns", "state", "solutions"),
        *("late", "constraint_scale", "entropy", "segments", "strata", "drift", "values"),
        *("entropy_mask", "allocation", "prior", "pivot", "guidance", "step", "rounds"),
        *("preference", "prefix_scores", "answer_logp", "moving_reference", "hints", "calls"),
        *("control", "predictions", "experts", "stops", "draw", "refill", "replay", "rubric"),
        *("skills", "skilled", "truncated", "non_incorrect", "repeats", "chance"),
    }
)
"""What a training run can give a method (`algo.needs`)."""

# Rewards that a shape takes, where it takes so many and no others.
_COLUMNS = {
    **dict.fromkeys(("rubric", "rubric_raw", "surrogate", "format_gate"), (2,)),
    **dict.fromkeys(("budget_triangle", "budget_band"), (1, 2)),
    "gated_sum": (3,),
}
# Words around prompts whose templates are named after what they put there.
_AROUND = ("hint", "draft", "answer", "criteria", "budget", "skill")
# Bases and scales that a completion without others can have.
_ALONE = ("none", "tracker", "prior", "batch_mean", "batch_std", "beta_density")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config.

    Attributes:
      key: dotted key, or "" for the whole file.
      message: what came, what is allowed, what to do.
      where: `line 3`, `base.yaml line 3` or `command line`; "" if it was not written anywhere.
    """

    key: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        if self.where == "command line" or not self.key:
            return ": ".join(part for part in (self.where, self.key, self.message) if part)
        return f"{self.key}{f' ({self.where})' if self.where else ''}: {self.message}"


def _group(cfg: Config) -> Iterator[Problem]:
    method, size = cfg.method, cfg.rollout.group_size
    slots = {"base": method.base, "scale": method.scale}
    comparing = [f"{slot} '{name}'" for slot, name in slots.items() if name not in _ALONE]
    if method.sampler != "uniform":
        comparing.append(f"sampler '{method.sampler}'")
    if comparing and size < 2:
        reason = ", ".join(comparing)
        yield Problem("rollout.group_size", f"must be at least 2 for {reason}, got {size}")
    if method.source == "reference" and size > 1:
        message = f"must be 1 for source 'reference' (a prompt has one solution), got {size}"
        yield Problem("rollout.group_size", message)
    if comparing and cfg.rollout.temperature == 0:
        message = "must be above 0, since greedy completions of a group are all the same, got 0"
        yield Problem("rollout.temperature", message)


def _method(cfg: Config) -> Iterator[Problem]:
    method, needed = cfg.method, algo.needs(cfg.method)
    if missing := sorted(needed - SUPPLIED):
        yield Problem(
            "method.name",
            f"{method.name!r} needs {', '.join(missing)}, which training runs do not supply yet; "
            "jgrpo.algo computes it in a loop of your own (docs/using_the_algebra.md)",
        )
    if method.constraint != "none" and method.trust != "linear":
        message = f"must be 'linear' with constraint '{method.constraint}' in training runs"
        yield Problem("method.trust", f"{message}, got '{method.trust}'")
    if "strata" in needed and not cfg.rollout.stratum_mark:
        message = f"must name the text that method '{method.name}' counts, got ''"
        yield Problem("rollout.stratum_mark", message)
    rewards, allowed = len(cfg.reward.functions), _COLUMNS.get(method.shape)
    if allowed is not None and rewards not in allowed:
        message = f"must list {' or '.join(map(str, allowed))} rewards for shape '{method.shape}'"
        yield Problem("reward.functions", f"{message}, got {rewards}")
    elif allowed is None and "columns" in needed and rewards < 2:
        message = f"must list at least 2 rewards for method '{method.name}', which compares each"
        yield Problem("reward.functions", f"{message}, got {rewards}")
    thresholds = len(method.dual_thresholds)
    if method.tracker == "multipliers" and thresholds != len(cfg.reward.functions) - 1:
        message = "must hold a threshold for every reward but the first"
        yield Problem("method.dual_thresholds", f"{message}, got {thresholds}")


def _allocation(cfg: Config) -> Iterator[Problem]:
    method, size = cfg.method, cfg.group_drawn
    tracked = ("success", "beta")
    if "prior" in algo.needs(method) and method.tracker not in tracked:
        message = "must be 'success' or 'beta' with base 'prior' in training runs"
        yield Problem("method.tracker", f"{message}, got '{method.tracker}'")
    if method.allocate == "uniform":
        return
    rule = f"with allocate '{method.allocate}'"
    if method.allocate in ("knapsack", "v0", "v0_exact") and method.tracker not in tracked:
        message = f"must be 'success' or 'beta' {rule} in training runs"
        yield Problem("method.tracker", f"{message}, got '{method.tracker}'")
    for slot, allowed in (("sampler", "uniform"), ("source", "policy")):
        if (got := getattr(method, slot)) != allowed:
            yield Problem(f"method.{slot}", f"must be '{allowed}' {rule}, got '{got}'")
    if cfg.rollout.lag:
        yield Problem("rollout.lag", f"must be 0 {rule}, which asks what the last step has shown")
    if not 1 <= method.rollouts_min <= size:
        message = f"must be from 1 to the mean of a group ({size}) {rule}"
        yield Problem("method.rollouts_min", f"{message}, got {method.rollouts_min}")
    if method.rollouts_max < size:
        message = f"must be at least the mean of a group ({size}) {rule}"
        yield Problem("method.rollouts_max", f"{message}, got {method.rollouts_max}")
    if algo.sequential(method):
        yield from _read_between_rounds(cfg, rule)


def _plan(cfg: Config) -> Iterator[Problem]:
    method, size = cfg.method, cfg.rollout.group_size
    if "skills" not in algo.needs(method):
        if method.shape == "skill_bonus":
            message = f"must be 'skill' with shape 'skill_bonus', got '{method.plan}'"
            yield Problem("method.plan", message)
        if cfg.data.skills:
            message = f"must be '' for method '{method.name}', which has no library"
            yield Problem("data.skills", f"{message}, got {cfg.data.skills!r}")
    if method.plan == "uniform":
        return
    rule = f"with plan '{method.plan}'"
    for slot, allowed in (("allocate", "uniform"), ("source", "policy")):
        if (got := getattr(method, slot)) != allowed:
            yield Problem(f"method.{slot}", f"must be '{allowed}' {rule}, got '{got}'")
            return
    if cfg.rollout.lag:
        yield Problem("rollout.lag", f"must be 0 {rule}, which asks what the last step has shown")
    if method.plan == "guided" and method.guided_rows > size:
        message = f"must be at most rollout.group_size ({size}) {rule}"
        yield Problem("method.guided_rows", f"{message}, got {method.guided_rows}")
    for slot, allowed in (("sampler", "uniform"), ("tracker", "none")):
        if cfg.plan.groups > 1 and (got := getattr(method, slot)) != allowed:
            yield Problem(f"method.{slot}", f"must be '{allowed}' {rule}, got '{got}'")
    if "experts" in (needed := algo.needs(method)):
        for name in sorted(needed & {"ref_logp", "values", "entropy"}):
            message = f"must be 0 with a method that needs {name}, which predictions that are"
            yield Problem(
                "method.expert_coef", f"{message} imitated lack, got {method.expert_coef}"
            )
    if cfg.plan.reads or "skills" in needed:
        yield from _read_between_rounds(cfg, rule)
    for slot, allowed, why in (
        ("sampler", "uniform", "whose roles write for all of a step's prompts"),
        ("control", "constant", "whose roles learn at rollout.temperature"),
    ):
        if cfg.plan.roles and (got := getattr(method, slot)) != allowed:
            yield Problem(f"method.{slot}", f"must be '{allowed}' {rule}, {why}, got '{got}'")
    names = [function.name for function in cfg.reward.functions]
    if "rubric" in algo.needs(method) and RUBRIC not in names:
        yield Problem("reward.functions", f"must list {RUBRIC} {rule}, got {', '.join(names)}")


def _read_between_rounds(cfg: Config, rule: str) -> Iterator[Problem]:
    for index, function in enumerate(cfg.reward.functions):
        if function.per != "completion":
            message = f"must be 'completion' {rule}, which reads rewards between rounds"
            yield Problem(f"reward.functions.{index}.per", f"{message}, got '{function.per}'")


def _preference(cfg: Config) -> Iterator[Problem]:
    needed = algo.needs(cfg.method)
    if "preference" in needed:
        rule = "where a preference model is trained and the policy is not"
        for key, value, allowed in (
            ("optim.weight_decay", cfg.optim.weight_decay, 0.0),
            ("method.plan", cfg.method.plan, "uniform"),
            ("method.allocate", cfg.method.allocate, "uniform"),
            ("method.penalty", cfg.method.penalty, "none"),
            ("method.bonus", cfg.method.bonus, "none"),
        ):
            if value != allowed:
                yield Problem(key, f"must be {allowed} {rule}, got {value}")
    if "prefix_scores" in needed:
        if not cfg.model.preference:
            message = f"must name the run that trained one for method '{cfg.method.name}', got ''"
            yield Problem("model.preference", message)
        phrase, mark = cfg.context.exit_phrase, cfg.rollout.segment_mark
        if cfg.method.plan == "stop" and mark in phrase:
            message = f"must not have rollout.segment_mark {mark!r} in it with plan 'stop'"
            yield Problem("context.exit_phrase", f"{message}, got {phrase!r}")
        if cfg.plan.uneven:
            message = "must be 'uniform' or 'stop' with a preference model"
            yield Problem("method.plan", f"{message}, got '{cfg.method.plan}'")


def _context(cfg: Config) -> Iterator[Problem]:
    parts = {f"context.{name}": ("{prompt}", f"{{{name}}}") for name in _AROUND}
    parts |= {
        "context.teacher": ("{prompt}", "{draft}"),
        "context.feedback": ("{feedback}",),
        "context.predict": ("{prompt}",),
        "context.hinter": ("{prompt}", "{draft}", "{solution}"),
        "context.hinted": ("{prompt}", "{hint}"),
        "context.lesson": ("{prompt}", "{traces}"),
        "calls.main": ("{prompt}",),
        "calls.sub": ("{call}",),
        "calls.answered": ("{answer}",),
    }
    for key, wanted in parts.items():
        value = attrgetter(key)(cfg)
        for part in wanted:
            if part not in value:
                yield Problem(key, f"must contain {part}, got {value!r}")
    forms = {"context.hint_form": "hint", "calls.form": "call", "calls.answer_form": "answer"}
    for key, meant in forms.items():
        form = attrgetter(key)(cfg)
        try:
            groups = re.compile(form).groups
        except re.error as error:
            yield Problem(key, f"must be a regular expression ({error}), got {form!r}")
        else:
            if not groups:
                yield Problem(key, f"must have a group, the {meant}, got {form!r}")


def _sampler(cfg: Config) -> Iterator[Problem]:
    method = cfg.method
    by_slot = {
        "draw": ("order", (("sampler", ("uniform",)), ("tracker", ("success", "beta")))),
        "refill": (
            "none",
            (("allocate", ("uniform",)), ("source", ("policy",)), ("plan", ("uniform",))),
        ),
        "row_mask": ("none", (("source", ("policy",)),)),
        "control": ("constant", (("source", ("policy",)),)),
        "replay": ("none", (("draw", ("order",)), ("sampler", ("uniform",)))),
    }
    for slot, (idle, rules) in by_slot.items():
        if (choice := getattr(method, slot)) == idle:
            continue
        for other, allowed in rules:
            if (got := getattr(method, other)) not in allowed:
                words = " or ".join(f"'{word}'" for word in allowed)
                message = f"must be {words} with {slot} '{choice}' in training runs"
                yield Problem(f"method.{other}", f"{message}, got '{got}'")
    for slot, idle in (("draw", "order"), ("control", "constant")):
        if (choice := getattr(method, slot)) != idle and cfg.rollout.lag:
            rule = f"with {slot} '{choice}', which asks what the last step has shown"
            yield Problem("rollout.lag", f"must be 0 {rule}")


def _routing(cfg: Config) -> Iterator[Problem]:
    replay, method = cfg.model.routing_replay, cfg.method
    if replay == "off":
        return
    allowed = {"source": "policy", "plan": "uniform", "allocate": "uniform", "sampler": "uniform"}
    for slot, idle in (allowed | {"refill": "none", "replay": "none"}).items():
        if (got := getattr(method, slot)) != idle:
            message = f"must be '{idle}' with model.routing_replay '{replay}', got '{got}'"
            yield Problem(f"method.{slot}", message)


METHOD_CHECKS: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _group,
    _method,
    _allocation,
    _plan,
    _context,
    _preference,
    _sampler,
    _routing,
)
