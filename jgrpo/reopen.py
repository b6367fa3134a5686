"""A run opened again after training: to evaluate and to generate."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Array, Key, PyTree

from jgrpo import config_io
from jgrpo.assembly import Run, assemble
from jgrpo.checkpoint import Checkpoints
from jgrpo.collect import completion_ids, texts
from jgrpo.folder import check_base
from jgrpo.keys import named_key
from jgrpo.types import Example, Message


def reopen(
    source: Path, overrides: Sequence[str] = (), step: int | None = None
) -> tuple[Run, PyTree, Key[Array, ""], int]:
    """Assembles a run and loads its weights.

    Args:
      source: a run folder, or a config file for the untrained weights.
      overrides: dotted `key=value` settings on top of the config.
      step: the checkpoint to load; default: the newest.

    Returns:
      The run, the weights, a key for sampling, and the number of steps the weights have trained.

    Raises:
      ValueError: if the folder holds no such checkpoint, or a damaged one, or adapters of which the
        weights beside them have changed.
    """
    is_run = (source / "config.yaml").is_file()
    cfg = config_io.load(source / "config.yaml" if is_run else source, overrides)
    if is_run:
        check_base(source, cfg)
    run = assemble(cfg)
    fresh = run.initial_state()
    key = named_key(run.root, "reopened")
    if not is_run:
        return run, fresh.params, key, 0
    with contextlib.closing(Checkpoints(source, run.cfg.checkpoint.keep)) as checkpoints:
        if step is not None and step not in checkpoints.steps():
            raise ValueError(f"{source} has no checkpoint of step {step}: {checkpoints.steps()}")
        state = (
            checkpoints.restore_latest(fresh) if step is None else checkpoints.restore(fresh, step)
        )
    if state is None:
        raise ValueError(f"{source} has no finished checkpoint")
    return run, state.params, key, int(state.step)


def sample_texts(
    run: Run,
    params: PyTree,
    key: Key[Array, ""],
    prompts: Sequence[str | list[Message]],
    *,
    group_size: int,
    temperature: float,
) -> list[list[str]]:
    """Samples completions of prompts given as text or messages.

    Args:
      run: an assembled run; its `rollout` section sets length and stop strings.
      params: weights to sample with.
      key: names the noise.
      prompts: what is asked.
      group_size: completions per prompt.
      temperature: 0 is greedy.
    """
    examples = [Example(prompt=prompt) for prompt in prompts]
    rollouts = run.evaluator.sample(params, examples, 0, key, group_size, temperature)
    flat = texts(run.model, completion_ids(rollouts))
    return [flat[i : i + group_size] for i in range(0, len(flat), group_size)]
