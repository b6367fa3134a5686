"""Rules between settings: what each of them alone would allow, but not together.

Also rules that look a name up in a table (tasks, rewards). Types and ranges of single settings are
annotations of `config.py`; what needs the model or the devices is checked when those are known.
"""

import dataclasses
from collections.abc import Callable, Iterator

from jgrpo import algo
from jgrpo.config import Config
from jgrpo.config_schema import suggestion
from jgrpo.data.tasks import TASKS
from jgrpo.rewards.functions import REWARDS

FILE_TASKS = ("jsonl", "parquet", "hf", "gsm8k", "humaneval", "mbpp")
"""Tasks that read `data.path`."""


SUPPLIED = frozenset(
    {
        *("ref_logp", "behavior_logp", "lengths", "sequence_kl", "token_kl", "mean_logp"),
        *("mask", "tokens", "prompt_ids", "reference", "columns", "state", "solutions"),
        *("late", "constraint_scale", "entropy", "segments", "strata", "drift"),
    }
)
"""What a training run can give a method (`algo.needs`)."""

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


def cross_checks(cfg: Config) -> list[Problem]:
    """Returns every rule between settings that a config breaks."""
    return [problem for check in _CHECKS for problem in check(cfg)]


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
    if "columns" in needed and len(cfg.reward.functions) < 2:
        message = f"must list at least 2 rewards for method '{method.name}', which compares each"
        yield Problem("reward.functions", f"{message}, got {len(cfg.reward.functions)}")
    thresholds = len(method.dual_thresholds)
    if method.tracker == "multipliers" and thresholds != len(cfg.reward.functions) - 1:
        message = "must hold a threshold for every reward but the first"
        yield Problem("method.dual_thresholds", f"{message}, got {thresholds}")


def _lengths(cfg: Config) -> Iterator[Problem]:
    method, limit = cfg.method, cfg.rollout.max_completion_tokens
    if method.shape == "overlong" and method.overlong_buffer_tokens >= limit:
        yield Problem(
            "method.overlong_buffer_tokens",
            f"must be below rollout.max_completion_tokens ({limit}) for shape 'overlong', "
            f"got {method.overlong_buffer_tokens}",
        )
    if "" in cfg.rollout.stop:
        message = "must hold no empty string (it would end every completion), got ''"
        yield Problem("rollout.stop", message)


def _batch(cfg: Config) -> Iterator[Problem]:
    prompts, size = cfg.data.num_prompts_per_step, cfg.group_rows
    parts, micro = cfg.optim.minibatches, cfg.optim.microbatch_completions
    if prompts % parts:
        message = f"must divide data.num_prompts_per_step ({prompts}), got {parts}"
        yield Problem("optim.minibatches", message)
        return
    completions = prompts // parts * size
    whole_groups = micro and micro % size == 0 and completions % micro == 0
    part_of_group = micro and size % micro == 0
    if micro and not whole_groups and not part_of_group:
        yield Problem(
            "optim.microbatch_completions",
            f"must be 0 (all), a divisor of a group's completions ({size}), or a multiple of it "
            f"that divides the {completions} completions of a minibatch, got {micro}",
        )


def _optim(cfg: Config) -> Iterator[Problem]:
    optim = cfg.optim
    if optim.warmup_steps > cfg.run.steps:
        message = f"must be at most run.steps ({cfg.run.steps}), got {optim.warmup_steps}"
        yield Problem("optim.warmup_steps", message)
    for name, value in (("beta1", optim.beta1), ("beta2", optim.beta2)):
        if value == 1.0:
            yield Problem(f"optim.{name}", "must be below 1, or no gradient ever counts, got 1")


def _data(cfg: Config) -> Iterator[Problem]:
    data = cfg.data
    if data.task not in TASKS:
        message = f"must be one of {', '.join(TASKS)}, got {data.task!r}"
        yield Problem("data.task", message + suggestion(data.task, TASKS))
    elif data.task in FILE_TASKS and not data.path:
        message = f"must name the data for task '{data.task}', got ''"
        yield Problem("data.path", message)
    elif data.task not in FILE_TASKS:
        for name, value in (("path", data.path), ("heldout_path", data.heldout_path)):
            if value:
                message = (
                    f"must be empty for task '{data.task}', which reads no file, got {value!r}"
                )
                yield Problem(f"data.{name}", message)


def _rewards(cfg: Config) -> Iterator[Problem]:
    names = [function.name for function in cfg.reward.functions]
    for index, name in enumerate(names):
        key = f"reward.functions.{index}.name"
        if name in names[:index]:
            yield Problem(key, f"must be given once, got {name!r} again; add the weights up")
        module, colon, function = name.partition(":")
        dotted = [*module.split("."), function] if colon else []
        if name not in REWARDS and not (dotted and all(part.isidentifier() for part in dotted)):
            message = (
                f"must be one of {', '.join(REWARDS)} or package.module:function, got {name!r}"
            )
            yield Problem(key, message + suggestion(name, REWARDS))


def _not_empty(cfg: Config) -> Iterator[Problem]:
    for key, value in (("model.path", cfg.model.path), ("run.dir", cfg.run.dir)):
        if not value:
            yield Problem(key, "must not be empty, got ''")


_CHECKS: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _not_empty,
    _data,
    _group,
    _method,
    _lengths,
    _rewards,
    _batch,
    _optim,
)
