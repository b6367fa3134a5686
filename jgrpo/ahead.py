"""`rollout.lag: 1`: the next step is sampled and scored while this one is learned from.

Step n + 1 is sampled with the weights that step n begins with, one update phase older than its own.
They are kept in `TrainState.aux["sampler"]`, so that a resumed run samples with them again: what a
step is does not depend on what happened to be ready. The ratio of the loss is taken against these
weights, whose log-probs the sampler has stored.

Sampler and learner take turns on the devices (programs that two threads start may deadlock in their
collectives), and the sampler comes first: rewards of the next step are computed while this one is
learned from. What is hidden is the work of the host.

Several processes must start their programs in one order. There the learner waits until the sampler
has drawn all that it may draw, and a step that was begun is not given up half-way.
"""

import copy
import dataclasses
import functools
import threading
from collections.abc import Mapping
from concurrent import futures

from jaxtyping import PyTree

from jgrpo.collect import Collector
from jgrpo.collected import Collected
from jgrpo.parallel import hosts
from jgrpo.types import TrainState

SAMPLER = "sampler"
_PATIENCE_S = 10.0


class GaveUp(Exception):
    """A step sampled ahead was not wanted any more."""


def sampling_params(state: TrainState) -> PyTree:
    """The weights that sample the coming step: with `rollout.lag` those from before the last."""
    return state.aux.get(SAMPLER, state.params)


class Ahead:
    """Collects steps, one of them in advance in a thread of its own.

    Attributes:
      turn: to be held by whoever starts programs on the devices while a step is collected ahead.
    """

    def __init__(self, collector: Collector) -> None:
        """Nothing is collected yet.

        Args:
          collector: collects.
        """
        self.turn = threading.Lock()
        self._collector = collector
        self._given_up = threading.Event()  # one for each step that is begun
        self._drawn = threading.Event()  # likewise
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._begun: futures.Future[Collected] | None = None
        self._of: tuple[int, int] | None = None

    @functools.cached_property
    def _in_thread(self) -> Collector:
        """The collector with a tokenizer of its own: one serves a single thread."""
        ours = self._collector
        model = dataclasses.replace(ours.model, tokenizer=copy.deepcopy(ours.model.tokenizer))
        engine = dataclasses.replace(ours.engine, tokenizer=model.tokenizer, turn=self.turn)
        return dataclasses.replace(ours, model=model, engine=engine)

    def collect(
        self, params: PyTree, step: int, cursor: int, strategy: PyTree, roles: Mapping[str, PyTree]
    ) -> Collected:
        """Returns a step's completions: those begun ahead, or they are collected now."""
        if self._begun is not None and self._of == (step, cursor):
            collected = self._begun.result()  # a signal may leave it here: it is still to be ended
            self._begun = None
            return collected
        self.give_up()
        return self._collector.collect(params, step, cursor, strategy, roles)

    def begin(self, params: PyTree, step: int, cursor: int) -> None:
        """Collects a step in the thread; takes what `collect` takes, but no state of the method."""
        given_up = self._given_up = threading.Event()
        drawn = self._drawn = threading.Event()

        def check() -> None:
            if given_up.is_set():
                raise GaveUp

        collector = dataclasses.replace(self._in_thread, check=check, on_drawn=drawn.set)
        self._of = (step, cursor)
        self._begun = self._thread.submit(collector.collect, params, step, cursor, {})
        self._begun.add_done_callback(lambda _: drawn.set())

    def wait_for_draw(self) -> None:
        """Returns when a step that was begun leaves the devices to others, for the first time.

        In several processes: for good.
        """
        if self._begun is None:
            return
        if hosts.several() and self._collector.cfg.method.sampler != "uniform":
            futures.wait([self._begun])  # it may draw again when it knows the rewards
        else:
            self._drawn.wait()

    def wait(self) -> None:
        """Returns when nothing is being collected: rewards serve one at a time."""
        if self._begun is not None:
            self._begun.exception()

    def give_up(self) -> None:
        """Drops a step that was begun; its thread ends at the next call of the engine."""
        together = hosts.several()
        if not together:
            self._given_up.set()
        if self._begun is not None:
            futures.wait([self._begun], None if together else _PATIENCE_S)
            self._begun = None

    def close(self) -> None:
        """Ends the thread."""
        self.give_up()
        self._thread.shutdown(wait=False, cancel_futures=True)
