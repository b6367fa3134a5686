"""Worker processes that can be killed: for reward functions that hang, crash or leak.

Each worker imports the functions it is told to, then takes one item at a time and runs it in its
main thread. A worker that misses its deadline is killed and a new one takes its place, so one item
can cost its own result only. What the functions compute is not known here. A child process that a
function leaves behind is not followed.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeAlias, cast

Failure: TypeAlias = Literal["", "raised", "died", "deadline"]

START_DEADLINE_S = 120.0
"""Seconds that a worker may take to start and import."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Attributes:
      value: what the function returned; None after a failure.
      failure: "" if it returned; `raised`, `died` (the process ended) or `deadline` (it was
        killed).
      detail: the error as text, "" if there is none.
    """

    value: Any = None
    failure: Failure = ""
    detail: str = ""


@dataclasses.dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    deadline: float
    item: int | None = None
    ready: bool = False


class Pool:
    """Worker processes for named functions; they start when first needed.

    Use it as a context, or call `close`. The processes end with this one in any case.
    """

    def __init__(
        self, functions: Sequence[str], *, num_workers: int, deadline_s: float, imports: str = ""
    ):
        """Describes the pool; starts nothing.

        Args:
          functions: `package.module:function`, importable in a fresh process.
          num_workers: processes that run at once.
          deadline_s: seconds that one item may take.
          imports: a module to import at the start, so that no item pays for it.
        """
        self._functions = tuple(functions)
        self._num_workers = num_workers
        self._deadline_s = deadline_s
        self._imports = imports
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, function: str, items: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Calls a function once per item, with the item as its keyword arguments.

        Args:
          function: one of the pool's.
          items: arguments of each call; they are pickled.

        Returns:
          The outcome of each item, in the order of the items.

        Raises:
          ValueError: if the pool does not know the function.
          RuntimeError: if a worker cannot start.
        """
        if function not in self._functions:
            raise ValueError(f"function must be one of {self._functions}, got {function!r}")
        for worker in list(self._workers):
            # Ended since the last call, or left at work by an interrupt.
            if worker.item is not None or not worker.process.is_alive():
                self._discard(worker)
        outcomes: list[Outcome | None] = [None] * len(items)
        waiting = deque(range(len(items)))
        while waiting or any(worker.item is not None for worker in self._workers):
            while len(self._workers) < min(self._num_workers, len(items)):
                self._workers.append(self._start())
            for worker in self._workers:
                if waiting and worker.ready and worker.item is None:
                    self._send(worker, waiting.popleft(), function, items)
            for worker in self._next_events():
                self._take(worker, outcomes)
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """Kills the workers. The pool may be used again; it then starts new ones."""
        while self._workers:
            self._discard(self._workers[-1])

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._functions, self._imports), daemon=True
        )
        process.start()
        theirs.close()  # else the end of the process would not close the pipe
        pipe = cast(Connection, ours)  # on Windows, a class of another name with the same methods
        return _Worker(process, pipe, time.monotonic() + START_DEADLINE_S)

    def _send(
        self, worker: _Worker, index: int, function: str, items: Sequence[Mapping[str, Any]]
    ) -> None:
        worker.item = index
        worker.deadline = time.monotonic() + self._deadline_s
        # A worker that died between two items is noticed by the next wait; the item has failed.
        with contextlib.suppress(BrokenPipeError):
            worker.pipe.send((function, dict(items[index])))

    def _next_events(self) -> list[_Worker]:
        """Waits until a worker that owes something has sent, ended or run out of time."""
        active = [worker for worker in self._workers if not worker.ready or worker.item is not None]
        timeout = max(0.0, min(worker.deadline for worker in active) - time.monotonic())
        handles = [handle for w in active for handle in (w.pipe, w.process.sentinel)]
        seen = wait(handles, timeout)
        now = time.monotonic()
        return [
            worker
            for worker in active
            if worker.pipe in seen or worker.process.sentinel in seen or worker.deadline <= now
        ]

    def _take(self, worker: _Worker, outcomes: list[Outcome | None]) -> None:
        outcome = self._receive(worker)
        if outcome.failure in ("died", "deadline"):
            self._discard(worker)
        if not worker.ready:
            if outcome.failure:
                self.close()
                message = outcome.detail or f"it has {outcome.failure}"
                raise RuntimeError(f"a reward worker could not start: {message}")
            worker.ready = True
        elif worker.item is not None:
            outcomes[worker.item] = outcome
            worker.item = None

    def _receive(self, worker: _Worker) -> Outcome:
        try:
            if worker.pipe.poll():
                return worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            pass
        if worker.deadline <= time.monotonic() and worker.process.is_alive():
            return Outcome(None, "deadline", f"took longer than {self._deadline_s} s")
        worker.process.join(timeout=1.0)
        return Outcome(None, "died", f"exit code {worker.process.exitcode}")

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


def resolve(path: str) -> Callable[..., Any]:
    """Returns the function that `package.module:function` names.

    Raises:
      ValueError: if the path is not of that form, or the module or the function is missing.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"{path!r} must have the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{path!r}: cannot import {module_name!r} ({error}); it must be installed, or its "
            "folder must be on PYTHONPATH"
        ) from error
    function = vars(module).get(name)
    if not callable(function):
        known = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise ValueError(f"{path!r}: {module_name!r} has no function {name!r} (it has: {known})")
    return function


def _serve(pipe: Connection, functions: tuple[str, ...], imports: str) -> None:
    """The life of a worker: says that it is ready, then answers items until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        known = {path: resolve(path) for path in functions}
        if imports:
            importlib.import_module(imports)
    except (ImportError, ValueError) as error:
        pipe.send(Outcome(None, "raised", str(error)))
        return
    pipe.send(Outcome())
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(_call(known[function], arguments))


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Outcome:
    try:
        return Outcome(function(**arguments))
    except Exception as error:  # The boundary: whatever a foreign function raises is a result.
        return Outcome(None, "raised", f"{type(error).__name__}: {error}"[:500])
