"""Rules between settings: what each of them alone would allow, but not together.

Also rules that look a name up in a table (tasks, rewards). Types and ranges of single settings are
annotations of `config.py`; what needs the model or the devices is checked when those are known.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from jgrpo import algo
from jgrpo.algo.methods import SLOTS
from jgrpo.config import Config, LoraConfig
from jgrpo.config_methods import METHOD_CHECKS, Problem
from jgrpo.config_schema import suggestion
from jgrpo.data.tasks import TASKS
from jgrpo.profile import traced_steps
from jgrpo.rewards.functions import REWARDS

FILE_TASKS = ("jsonl", "parquet", "hf", "gsm8k", "humaneval", "mbpp")
"""Tasks that read `data.path`."""


def cross_checks(cfg: Config) -> list[Problem]:
    """Returns every rule between settings that a config breaks."""
    return [problem for check in _CHECKS for problem in check(cfg)]


def _experts(cfg: Config) -> Iterator[Problem]:
    method, experts = cfg.method, cfg.calls.experts
    asked = "calls" in algo.needs(method) and method.sub_expert_weight > 0
    rule = f"plan '{method.plan}' and method.sub_expert_weight {method.sub_expert_weight:g}"
    if asked and not experts:
        message = "must list what judges the answers to calls (or set the weight to 0)"
        yield Problem("calls.experts", f"{message} with {rule}, got nothing")
    elif experts and not asked:
        names = ", ".join(expert.name for expert in experts)
        yield Problem("calls.experts", f"must be empty with {rule}: nobody asks them, got {names}")


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
    completions = prompts // parts * size * cfg.plan.groups
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


def _quantized(cfg: Config) -> Iterator[Problem]:
    method = cfg.method
    if not cfg.quantized_rollouts:
        return
    corrections = [name for name in SLOTS["correction"] if name != "none"]
    keys = [name for name in ("weights", "kv") if getattr(cfg.rollout, name) == "int8"]
    if method.source != "policy":
        for name in keys:
            message = f"must be 'model' for source '{method.source}', got 'int8'"
            yield Problem(f"rollout.{name}", message)
    elif method.correction == "none":
        yield Problem(
            "method.correction",
            f"must correct for a sampler in int8 (rollout.{keys[0]}), which draws from another "
            f"law than the learner trains: one of {', '.join(corrections)}, got "
            f"'none'; method.correction=is_token truncates the ratio of each token "
            "at method.is_high",
        )


def _lora(cfg: Config) -> Iterator[Problem]:
    lora, idle = cfg.model.lora, LoraConfig()
    try:
        re.compile(lora.targets)
    except re.error as error:
        message = f"must be a regular expression ({error}), got {lora.targets!r}"
        yield Problem("model.lora.targets", message)
    for name in ("alpha", "targets", "quantize"):
        if not lora.rank and (got := getattr(lora, name)) != getattr(idle, name):
            message = f"must be {getattr(idle, name)!r} without adapters (model.lora.rank 0)"
            yield Problem(f"model.lora.{name}", f"{message}, got {got!r}")
    # A critic, a preference model, and a reference that moves are of whole weights.
    whole = {"values", "preference", "prefix_scores", "moving_reference"} & algo.needs(cfg.method)
    if lora.rank and whole:
        message = (
            f"must be 0 for method '{cfg.method.name}', which needs {', '.join(sorted(whole))}"
        )
        yield Problem("model.lora.rank", f"{message}, got {lora.rank}")


def _rewards(cfg: Config) -> Iterator[Problem]:
    for section in ("reward.functions", "calls.experts"):
        names = [function.name for function in attrgetter(section)(cfg)]
        yield from _named_rewards(section, names)


def _named_rewards(section: str, names: Sequence[str]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        key = f"{section}.{index}.name"
        if name in names[:index]:
            yield Problem(key, f"must be given once, got {name!r} again; add the weights up")
        module, colon, function = name.partition(":")
        dotted = [*module.split("."), function] if colon else []
        if name not in REWARDS and not (dotted and all(part.isidentifier() for part in dotted)):
            message = (
                f"must be one of {', '.join(REWARDS)} or package.module:function, got {name!r}"
            )
            yield Problem(key, message + suggestion(name, REWARDS))


def _profile(cfg: Config) -> Iterator[Problem]:
    try:
        traced_steps(cfg.run.profile)
    except ValueError as error:
        yield Problem("run.profile", str(error))


def _not_empty(cfg: Config) -> Iterator[Problem]:
    for key, value in (("model.path", cfg.model.path), ("run.dir", cfg.run.dir)):
        if not value:
            yield Problem(key, "must not be empty, got ''")


_CHECKS: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _not_empty,
    _data,
    *METHOD_CHECKS,
    _experts,
    _lengths,
    _rewards,
    _batch,
    _optim,
    _profile,
    _quantized,
    _lora,
)
