"""The loop of a run: one line per stage.

Step n is a function of (config, state, n). What a run is made of is assembled once (`assembly.py`);
what it remembers is in `TrainState` and nowhere else; what it has shown is in the run folder.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jgrpo.ahead import SAMPLER, Ahead, sampling_params
from jgrpo.assembly import Run, assemble, attention_kernel
from jgrpo.checkpoint import Checkpoints
from jgrpo.compiled import Compilations, counted, kept_on_disk
from jgrpo.config import Config
from jgrpo.evaluate import EvalReport
from jgrpo.folder import claim, locked, read_summary, write_summary
from jgrpo.keys import named_key
from jgrpo.learning import learn
from jgrpo.models.load import architecture
from jgrpo.observe import broken_invariants, samples, step_metrics, whole_step
from jgrpo.parallel import hosts
from jgrpo.planner import plan
from jgrpo.profile import Profile
from jgrpo.progress import Progress
from jgrpo.recorder import Recorder
from jgrpo.roles import role_params
from jgrpo.stopping import Stopped, Stopping, StopRequested
from jgrpo.together import check_alike
from jgrpo.types import TrainState
from jgrpo.warm_up import warm_up
from jgrpo.watch import Watch


def train(cfg: Config, *, force: bool = False) -> dict[str, Any]:
    """Runs, or continues, the training that a config describes.

    Args:
      cfg: the config; `run.dir` says where everything goes.
      force: continue although config, model or data differ from those the folder was started with.

    Returns:
      The summary, as written to `summary.json`.

    Raises:
      ValueError: if a part does not fit the config, or the folder holds another run.
      OSError: if the folder is in use or cannot be written; the newest checkpoint is intact.
      FloatingPointError: if the run diverges; the newest checkpoint is from before.
      RewardError: if a reward fails too often, or its worker processes cannot go on.
      Stopped: if SIGTERM or SIGINT has ended the run; its state has been saved.
    """
    folder = Path(cfg.run.dir)
    check_alike(cfg)
    plan(cfg, architecture(cfg.model.path), jax.device_count())  # refuses what cannot be split
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(cfg.run.host_timeout_s, cfg.run.watchdog_s))
        agreed = hosts.agreed if hosts.several() else None
        stopping = stack.enter_context(Stopping(cfg.run.grace_s, agreed))
        hosts.on_first(lambda: stack.enter_context(locked(folder)))
        facts = {"attention": attention_kernel(cfg)}
        hosts.on_first(lambda: claim(folder, cfg, force=force, further=facts))
        stack.enter_context(kept_on_disk(folder / "compiled", cfg.run.compile_cache))
        try:
            with stopping.interruptible():
                trainer = _open(cfg, folder, stopping, watch, stack)
            return trainer.run_steps()
        except StopRequested:
            message = f"stopped by {stopping.requested}; the same command continues {folder}"
            raise Stopped(stopping.requested, message) from None


def _open(
    cfg: Config, folder: Path, stopping: Stopping, watch: Watch, stack: contextlib.ExitStack
) -> "Trainer":
    """Loads everything, with the newest good checkpoint or the initial weights."""
    began, compiled = time.perf_counter(), stack.enter_context(counted())
    run = stack.enter_context(contextlib.closing(assemble(cfg)))
    run = run.checked(stopping.check) if hosts.several() else run
    kept = cfg.checkpoint
    checkpoints = stack.enter_context(
        contextlib.closing(
            Checkpoints(folder, kept.keep, keep_best=kept.keep_best, deadline_s=kept.deadline_s)
        )
    )
    traced = cfg.run.profile if hosts.is_first() else ""
    state = _newest_state(run, checkpoints)
    start = int(state.step)
    return Trainer(
        run=run,
        state=state,
        ahead=stack.enter_context(contextlib.closing(Ahead(run.collector))),
        summary=hosts.from_first(lambda: read_summary(folder)) if start else {},
        folder=folder,
        stopping=stopping,
        watch=watch,
        checkpoints=checkpoints,
        began=began,
        compiled=compiled,
        profile=stack.enter_context(contextlib.closing(Profile(folder, traced))),
        recorder=stack.enter_context(contextlib.closing(Recorder(folder, cfg, start))),
        progress=stack.enter_context(Progress(cfg.run.steps, start, quiet=not hosts.is_first())),
    )


def _newest_state(run: Run, checkpoints: Checkpoints) -> TrainState:
    """The newest good checkpoint; the initial state if there is no checkpoint."""
    fresh = run.initial_state()
    return checkpoints.restore_latest(fresh) or fresh


@dataclasses.dataclass(kw_only=True, eq=False)
class Trainer:
    """The loop and what it works with.

    Attributes:
      run: everything fixed.
      state: everything that changes.
      ahead: collects the completions of each step.
      summary: what `summary.json` holds.
      folder: the run folder.
      stopping: says whether a signal has come.
      watch: is told that the run moves on.
      checkpoints: where states are saved.
      began: clock at the beginning, in seconds.
      compiled: what has been compiled since.
      profile: traces the steps that are to be traced.
      recorder: writes metrics and samples, and sees what is wrong with them.
      progress: shows them.
    """

    run: Run
    state: TrainState
    ahead: Ahead
    summary: dict[str, Any]
    folder: Path
    stopping: Stopping
    watch: Watch
    checkpoints: Checkpoints
    began: float
    compiled: Compilations
    profile: Profile
    recorder: Recorder
    progress: Progress

    @property
    def _step(self) -> int:
        return int(self.state.step)

    def run_steps(self) -> dict[str, Any]:
        """Goes on to the last step and returns the summary.

        Raises:
          StopRequested: after a signal; what had to be saved has been.
        """
        start, last = self._step, self.run.cfg.run.steps
        if start:
            self.progress.say(f"continuing {self.folder} after step {start} of {last}")
        try:
            self._warm_up()
            if "eval_before" not in self.summary:
                self._report("eval_before", "before training")
            while self._step < last:
                self._advance()
                if self._step == start + 1:
                    ready_s = time.perf_counter() - self.began
                    self.progress.say(f"first step done after {ready_s:.1f} s: {self.compiled}")
            if start < last or "eval_after" not in self.summary:
                self._save()
                self._report("eval_after", "after training", steps=last)
        except StopRequested:
            self._save()
            self._settle()
            raise
        self._settle()
        return self.summary

    def _settle(self) -> None:
        """Returns when all is on the disk, in all processes."""
        self.checkpoints.wait()
        hosts.exchange("")

    def _warm_up(self) -> None:
        """Compiles ahead, if there are steps to come and `run.compile_ahead` says so."""
        wanted, is_cpu = self.run.cfg.run.compile_ahead, jax.default_backend() == "cpu"
        if self._step < self.run.cfg.run.steps and (
            wanted == "on" or (wanted == "auto" and not is_cpu)
        ):
            with self.stopping.interruptible():
                warm_up(self.run, self.state, self.progress.say)

    def _advance(self) -> None:
        """Makes one step: a line per stage."""
        run, cfg, step, begin = self.run, self.run.cfg, self._step, time.perf_counter()
        compiled_s = self.compiled.seconds
        self.profile.begin(step)
        with self.stopping.interruptible():
            params, cursor = sampling_params(self.state), int(self.state.cursor)
            strategy, roles = hosts.at_hand(self.state.strategy), role_params(self.state)
            collected = self.ahead.collect(params, step, cursor, strategy, roles)
        for news in self.recorder.failures(step, collected.scores):
            self.progress.say(news)
        next_sampler = self._begin_next(step, collected.cursor)
        with self.ahead.turn:
            self.state, batch, learned = learn(run, self.state, step, collected)
        self.state = dataclasses.replace(self.state, aux=self.state.aux | next_sampler)
        metrics = step_metrics(cfg, step, collected, batch, learned)
        metrics["time/compile_s"] = self.compiled.seconds - compiled_s
        metrics |= whole_step(metrics, time.perf_counter() - begin)
        for news in self.profile.end(step, metrics):
            self.progress.say(news)
        metrics |= self._evaluate_if_due()
        for broken in broken_invariants(cfg, metrics):
            self.progress.say(broken)
        shown = samples(run.model, step, collected, batch) if self.recorder.shows(step) else []
        for warning in self.recorder.add(step, metrics, shown):
            self.progress.say(f"step {step + 1}: {warning}")
        self.progress.update(step, metrics)
        self.watch.moved()
        if self.recorder.skipped_in_row >= cfg.divergence.max_skipped_in_row:
            self._diverged()
        elif cfg.checkpoint.every and self._step % cfg.checkpoint.every == 0:
            self._save()

    def _begin_next(self, step: int, cursor: int) -> dict[str, Any]:
        """With `rollout.lag` draws the next step's completions, which are scored meanwhile.

        Returns what the state has to remember of it.
        """
        if not self.run.cfg.rollout.lag:
            return {}
        params = jax.tree.map(jnp.copy, self.state.params)
        if step + 1 < self.run.cfg.run.steps:
            with self.stopping.interruptible():
                self.ahead.begin(params, step + 1, cursor)
                self.ahead.wait_for_draw()
        return {SAMPLER: params}

    def _save(self) -> None:
        """Saves the state, unless its last updates were skipped: a checkpoint is a good state."""
        if not self.recorder.skipped_in_row:
            self.checkpoints.save(self.state, self.recorder.scores)
        self.watch.moved()

    def _diverged(self) -> None:
        """Goes back to the newest checkpoint with the prompts that come next, or gives up."""
        limits, step, cursor = self.run.cfg.divergence, self._step, self.state.cursor
        done = self.summary.setdefault("roll_backs", [])
        this = {"from_step": step, "cursor": int(cursor)}
        is_new = this not in done  # a killed run comes by here again
        if limits.then == "stop" or (is_new and len(done) >= limits.max_roll_backs):
            raise FloatingPointError(
                f"the updates of {self.recorder.skipped_in_row} steps in a row, up to step {step}, "
                f"were not finite (roll-backs so far: {len(done)}). The newest checkpoint is from "
                f"before. Look at {self.folder}/metrics.jsonl and at the rewards in samples/; "
                "lower optim.lr, or set divergence.then: roll_back"
            )
        if is_new:
            done.append(this)
            write_summary(self.folder, self.summary)
        self.checkpoints.wait()
        good = _newest_state(self.run, self.checkpoints)
        self.state = dataclasses.replace(good, cursor=cursor)
        self.recorder.resume(self._step)
        self.progress.say(f"step {step}: diverged; going on from step {self._step}, new prompts")

    def _evaluate_if_due(self) -> dict[str, float]:
        """The held-out metrics, where `eval.every` asks for them."""
        every, done = self.run.cfg.eval.every, self._step
        if not every or done % every or done == self.run.cfg.run.steps:
            return {}
        return self._evaluate().metrics()

    def _evaluate(self) -> EvalReport:
        self.ahead.wait()
        key = named_key(self.run.root, self._step, "eval")
        return self.run.evaluator.evaluate(self.state.params, key)

    def _report(self, name: str, when: str, **facts: Any) -> None:
        """Evaluates and puts the report into the summary."""
        with self.stopping.interruptible():
            report = self._evaluate()
        self.watch.moved()
        correct = f"{report.greedy_accuracy:.1%} of {report.num_prompts} held-out prompts correct"
        self.progress.say(f"{when}: {correct} (greedy), {report.length_mean:.1f} tokens")
        with self.stopping.interruptible():
            facts |= self.run.report_beside(self.state, self.folder, name)
        self.summary |= facts | {name: report.to_json()}
        write_summary(self.folder, self.summary)
