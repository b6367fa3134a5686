"""The loop of a run: one line per stage.

Step n is a function of (config, state, n). What a run is made of is assembled once (`assemble`);
what it remembers is in `TrainState` and nowhere else; what it has shown is in the run folder.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jgrpo import algo
from jgrpo.checkpoint import Checkpoints
from jgrpo.collect import Collected, Collector
from jgrpo.config import Config
from jgrpo.data.tasks import load_task
from jgrpo.evaluate import EvalReport
from jgrpo.folder import claim, read_summary, write_summary
from jgrpo.heldout import Evaluator
from jgrpo.keys import named_key, root_key
from jgrpo.learner.batch import minibatches, sequence_kl, unweighted, with_advantages
from jgrpo.learner.optim import make_optimizer
from jgrpo.learner.step import Learner
from jgrpo.loggers import open_sinks
from jgrpo.metrics import MetricsFile, SamplesWriter
from jgrpo.models.architecture import logical_axes
from jgrpo.models.load import LoadedModel, architecture, load
from jgrpo.observe import (
    broken_invariants,
    combine_updates,
    samples,
    step_metrics,
    whole_step,
)
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import param_shardings, replicated
from jgrpo.planner import plan
from jgrpo.progress import Progress
from jgrpo.rewards.score import build
from jgrpo.rollout.engine import Engine
from jgrpo.types import Batch, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Everything fixed about a run.

    Attributes:
      cfg: the config.
      mesh: the devices.
      model: architecture, tokenizer and initial weights.
      collector: prompts, sampler and rewards.
      learner: the update.
      evaluator: the held-out evaluation.
      root: the key from which all randomness is derived.
    """

    cfg: Config
    mesh: Mesh
    model: LoadedModel
    collector: Collector
    learner: Learner
    evaluator: Evaluator
    root: Key[Array, ""]


def assemble(cfg: Config) -> Run:
    """Loads model and task and puts the stages together; nothing is compiled or written yet.

    Raises:
      ValueError: if the mesh, the model, the task or a reward does not fit the config.
    """
    mesh = make_mesh(cfg.mesh)
    model = load(
        cfg.model.path,
        init=cfg.model.init,
        seed=cfg.run.seed,
        dtype=cfg.model.dtype,
        param_dtype=cfg.model.param_dtype,
    )
    task = load_task(cfg.data)
    rewards = build(cfg.reward.functions, task, cfg.reward)
    root = root_key(cfg.run.seed)
    shapes = jax.eval_shape(lambda: model.params)
    engine = Engine(
        graphdef=model.graphdef,
        mesh=mesh,
        tokenizer=model.tokenizer,
        eos_ids=model.eos_ids,
        dtype=cfg.model.dtype,
        chunk_tokens=cfg.rollout.chunk_tokens,
    )
    learner = Learner(
        graphdef=model.graphdef,
        method=cfg.method,
        optimizer=make_optimizer(cfg.optim, cfg.run.steps),
        mesh=mesh,
        shapes=shapes,
        shardings=param_shardings(mesh, logical_axes(model.arch), shapes),
        temperature=cfg.rollout.temperature,
        remat=cfg.model.remat,
        logp_chunk_tokens=cfg.optim.logp_chunk_tokens,
        microbatch_completions=cfg.optim.microbatch_completions,
    )
    parts = {"cfg": cfg, "task": task, "model": model, "engine": engine, "rewards": rewards}
    return Run(
        cfg=cfg,
        mesh=mesh,
        model=model,
        collector=Collector(**parts, root=root),
        learner=learner,
        evaluator=Evaluator(**parts),
        root=root,
    )


def train(cfg: Config, *, force: bool = False) -> dict[str, Any]:
    """Runs, or continues, the training that a config describes.

    Args:
      cfg: the config; `run.dir` says where everything goes.
      force: continue although the config differs from the one the folder was started with.

    Returns:
      The summary, as written to `summary.json`.

    Raises:
      ValueError: if a part does not fit the config, or the folder holds another run.
    """
    folder = Path(cfg.run.dir)
    plan(cfg, architecture(cfg.model.path), jax.device_count())  # refuses what cannot be split
    claim(folder, cfg, force=force)
    run = assemble(cfg)
    with contextlib.closing(Checkpoints(folder, cfg.checkpoint.keep)) as checkpoints:
        fresh = run.learner.init(run.model.params)
        state = checkpoints.restore_latest(fresh) or fresh
        del fresh
        return _loop(run, state, folder, checkpoints)


def _loop(run: Run, state: TrainState, folder: Path, checkpoints: Checkpoints) -> dict[str, Any]:
    cfg, start = run.cfg, int(state.step)
    metrics_file, samples_writer = MetricsFile(folder), SamplesWriter(folder)
    metrics_file.truncate_after(start)
    sinks = open_sinks(cfg.log, folder, dataclasses.asdict(cfg), start)
    with Progress(cfg.run.steps, start) as progress:
        if start:
            progress.say(f"continuing {folder} after step {start} of {cfg.run.steps}")
        summary = read_summary(folder)
        if start == 0:
            before = run.evaluator.evaluate(state.params, named_key(run.root, 0, "eval"))
            progress.say(f"before training: {_headline(before)}")
            summary = {"eval_before": before.to_json()}
            write_summary(folder, summary)
        for step in range(start, cfg.run.steps):
            begin = time.perf_counter()
            collected = run.collector.collect(state.params, step, int(state.cursor))
            state, batch, learned = learn(run, state, step, collected)
            metrics = step_metrics(cfg, step, collected, batch, learned)
            metrics |= whole_step(metrics, time.perf_counter() - begin)
            metrics |= evaluate_if_due(run, state, step + 1)
            for broken in broken_invariants(cfg, metrics):
                progress.say(broken)
            metrics_file.write(step, metrics)
            for sink in sinks:
                sink.write(step, metrics)
            if cfg.log.samples_every and step % cfg.log.samples_every == 0:
                samples_writer.write(step, samples(run.model, step, collected, batch))
            progress.update(step, metrics)
            if cfg.checkpoint.every and (step + 1) % cfg.checkpoint.every == 0:
                checkpoints.save(state)
        if start < cfg.run.steps or "eval_after" not in summary:
            checkpoints.save(state)
            after = run.evaluator.evaluate(state.params, named_key(run.root, cfg.run.steps, "eval"))
            progress.say(f"after training: {_headline(after)}")
            summary |= {"steps": cfg.run.steps, "eval_after": after.to_json()}
            write_summary(folder, summary)
    metrics_file.close()
    for sink in sinks:
        sink.close()
    return summary


def learn(
    run: Run, state: TrainState, step: int, collected: Collected
) -> tuple[TrainState, Batch, dict[str, float]]:
    """Turns scored completions into advantages and makes the updates of one step.

    Args:
      run: the run.
      state: the state that sampled the completions; donated.
      step: number of the step.
      collected: the completions.

    Returns:
      The new state, all completions with their advantages, and the metrics of the updates.
    """
    cfg, method, learner = run.cfg, run.cfg.method, run.learner
    begin = time.perf_counter()
    batch = unweighted(collected.rollouts, collected.kept[:, None] & collected.valid)
    extra: dict[str, float] = {}
    if method.source == "reference":
        batch = dataclasses.replace(batch, old_logp=None)
    elif cfg.model.dtype != "float32":
        # In bfloat16 sampler and learner round differently; the ratio is the learner's own.
        batch, extra = _learner_old_logp(learner, state, batch)
    if state.ref_params is not None:
        ref_logp = jax.device_get(learner.logps(state.ref_params, batch))
        batch = dataclasses.replace(batch, ref_logp=ref_logp)
    rewards = collected.rewards
    if method.source == "reference":
        rewards = np.ones_like(rewards)  # a worked solution is to be learned, whatever it scores
    side = _side(cfg, batch, collected)
    advantages = algo.advantages(method, rewards, side, state.strategy)
    batch = with_advantages(batch, advantages)
    updates = []
    for epoch in range(cfg.optim.epochs_per_step):
        order = named_key(run.root, step, "minibatches", epoch)
        for part in minibatches(method, batch, cfg.optim.minibatches, order):
            state, metrics = learner.update(state, part)
            updates.append(metrics)
    placed = jax.device_put((np.int32(step + 1), np.int32(collected.cursor)), replicated(run.mesh))
    state = dataclasses.replace(state, step=placed[0], cursor=placed[1], strategy=advantages.state)
    learned = combine_updates(jax.device_get(updates)) | extra
    learned["time/learner_s"] = time.perf_counter() - begin
    return state, batch, learned


def _learner_old_logp(
    learner: Learner, state: TrainState, batch: Batch
) -> tuple[Batch, dict[str, float]]:
    old_logp = jax.device_get(learner.logps(state.params, batch))
    gap = np.where(batch.mask, old_logp - np.asarray(batch.old_logp), 0.0)
    share = 1.0 / max(int(np.sum(batch.mask)), 1)
    extra = {
        "invariant/logp_gap_max": float(np.abs(gap).max()),
        "kl/behavior": float((np.expm1(gap) - gap).sum() * share),
    }
    return dataclasses.replace(batch, old_logp=old_logp), extra


def _side(cfg: Config, batch: Batch, collected: Collected) -> algo.Side:
    needed = algo.needs(cfg.method)
    return algo.Side(
        lengths=np.asarray(batch.mask).sum(-1) if "lengths" in needed else None,
        max_completion_tokens=cfg.rollout.max_completion_tokens,
        sequence_kl=sequence_kl(batch) if "sequence_kl" in needed else None,
        valid=collected.valid & collected.kept[:, None],
    )


def evaluate_if_due(run: Run, state: TrainState, done: int) -> dict[str, float]:
    """The held-out metrics after `done` steps, where `eval.every` asks for them."""
    cfg = run.cfg
    if not cfg.eval.every or done % cfg.eval.every or done == cfg.run.steps:
        return {}
    return run.evaluator.evaluate(state.params, named_key(run.root, done, "eval")).metrics()


def _headline(report: EvalReport) -> str:
    return (
        f"{report.greedy_accuracy:.1%} of {report.num_prompts} held-out prompts correct (greedy), "
        f"{report.length_mean:.1f} tokens"
    )
