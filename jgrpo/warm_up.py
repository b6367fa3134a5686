"""The programs of a run, compiled side by side before its first step."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from jgrpo import learning
from jgrpo.ahead import sampling_params
from jgrpo.assembly import Run
from jgrpo.types import TrainState


def warm_up(run: Run, state: TrainState, say: Callable[[str], None]) -> None:
    """Compiles sampling and updates at the same time, so that no step waits for either.

    Prompts are taken to be as wide as those of the coming step, completions as long as they may
    be; what turns out otherwise is compiled when it comes.

    Args:
      run: the run.
      state: the state it begins with; nothing of it changes.
      say: shows a line.
    """
    asked = run.collector.asking.take(int(state.cursor), state.strategy).tokens
    learner = run.at(state.strategy).learner
    jobs: dict[str, Callable[[], None]] = {
        "updates": lambda: learning.compile_ahead(run.cfg, learner, state, asked)
    }
    if run.cfg.method.source != "reference" and run.cfg.method.allocate == "uniform":
        params = sampling_params(state)
        jobs["sampling"] = lambda: run.collector.compile_ahead(params, asked)
    say(f"compiling {' and '.join(jobs)} ahead")
    began, took = time.perf_counter(), []

    def timed(name: str) -> None:
        jobs[name]()
        took.append(f"{name} {time.perf_counter() - began:.1f} s")

    pool = ThreadPoolExecutor(len(jobs), thread_name_prefix="compiling")
    try:
        list(pool.map(timed, jobs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    say(f"compiled ahead: {', '.join(took)}")
