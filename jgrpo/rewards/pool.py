"""Worker processes that can be killed: for reward functions that hang, crash or leak.

One thread serves them: it hands out calls, reads answers, and has a worker killed that misses its
deadline, so that one call can cost its own result only and no caller ever waits for another's.
What runs in the processes is in `worker.py`; what the functions compute is not known here. Linux
and macOS.
"""

import contextlib
import dataclasses
import json
import logging
import pickle
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from jgrpo.rewards.calls import Call, Description, Kind, Outcome, RewardError, parse_answer
from jgrpo.rewards.template import START_DEADLINE_S, Template
from jgrpo.rewards.worker import ANSWER, CALL

_LOG = logging.getLogger(__name__)
_MAX_ANSWER_BYTES = 65536
_BYTES_PER_VALUE = 64
_MAX_STARTS = 3
_END_S = 10.0


@dataclasses.dataclass(eq=False)
class _Job:
    call: Call
    payload: bytes
    future: Future[Outcome]
    number: int
    begin: float = 0.0


@dataclasses.dataclass(eq=False)
class _Worker:
    """A worker as the trainer sees it; `lost` once its socket is at an end or it is killed."""

    number: int
    pipe: socket.socket
    deadline: float
    job: _Job | None = None
    ready: bool = False
    lost: bool = False
    outgoing: memoryview = dataclasses.field(default_factory=lambda: memoryview(b""))
    incoming: bytearray = dataclasses.field(default_factory=bytearray)


class Pool:
    """Worker processes for named functions. Use it as a context, or call `close`.

    The processes end with this one in any case, also when it is killed.
    """

    def __init__(
        self,
        functions: Mapping[str, str],
        *,
        num_workers: int,
        deadline_s: float,
        memory_mb: int = 0,
    ) -> None:
        """Describes the pool; starts nothing.

        Args:
          functions: `package.module:function`, importable in a fresh process, each with the name
            of a package that it imports late, or "".
          num_workers: processes that run at once.
          deadline_s: seconds that a call may take for each of its completions.
          memory_mb: MiB that a worker may use beyond what the imports took; 0: no limit.
        """
        self.deadline_s = deadline_s
        self.num_workers = num_workers
        self._template = Template(functions, memory_mb)
        self._described: Future[Mapping[str, Description]] = Future()
        self._inbox: deque[_Job] = deque()
        self._waiting: deque[_Job] = deque()
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="reward pool", daemon=True)
        self._lock = threading.Lock()
        self._closing = False
        self._numbers = 0
        self._starts = 0

    def __enter__(self) -> "Pool":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Mapping[str, Description]:
        """Starts the processes and imports the functions; returns how each wants to be called.

        Raises:
          ValueError: naming the function, if importing it fails, ends the process or takes too
            long.
        """
        if not self._thread.ident:
            self._thread.start()
        return self._described.result()

    def submit(self, call: Call) -> Future[Outcome]:
        """Hands over a call and returns at once.

        Returns:
          A future that always comes: the outcome, or RewardError if the pool cannot go on.

        Raises:
          ValueError: if an argument cannot be pickled; names the function.
          RewardError: if the pool is closed.
        """
        try:
            payload = pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(
                f"reward {call.function!r}: its columns cannot be sent to a worker: {error}"
            ) from error
        job = _Job(call, payload, Future(), 0)
        with self._lock:
            if self._closing:
                raise RewardError("the reward pool is closed")
            self._inbox.append(job)
        self._wake()
        return job.future

    def close(self) -> None:
        """Kills the processes; calls that are under way fail. Does nothing the second time."""
        with self._lock:
            first, self._closing = not self._closing, True
        if first and self._thread.ident:
            self._wake()
            self._thread.join(_END_S)
            if self._thread.is_alive():
                _LOG.warning("the reward pool did not end within %g s", _END_S)
        elif first:
            self._release()

    def _wake(self) -> None:
        # A full socket wakes as well; a closed one belongs to a pool that has ended.
        with contextlib.suppress(OSError):
            self._waker.send(b"x", socket.MSG_DONTWAIT)

    # What follows runs in the pool's own thread.

    def _serve(self) -> None:
        error: Exception = RewardError("the reward pool ended by an error of its own")
        try:
            self._begin()
            while not self._closing:
                self._turn()
            error = RewardError("the reward pool was closed")
        except (ValueError, RuntimeError, OSError) as problem:
            error = problem
        finally:
            with self._lock:
                self._closing = True
            running = [w.job for w in self._workers.values() if w.job is not None]
            for job in (*running, *self._waiting, *self._inbox):
                if not job.future.done():
                    job.future.set_exception(error)
            if not self._described.done():
                self._described.set_exception(error)
            self._release()

    def _begin(self) -> None:
        described = self._template.start(lambda: self._closing)
        self._selector.register(self._template.control, selectors.EVENT_READ)
        if not self._described.done():
            self._selector.register(self._woken, selectors.EVENT_READ)
            self._described.set_result(described)

    def _release(self) -> None:
        self._template.end()
        for worker in self._workers.values():
            worker.pipe.close()
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def _turn(self) -> None:
        """Hands out what waits, then waits for the next event and follows it."""
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        self._hand_out()
        deadlines = [w.deadline for w in self._workers.values() if w.job or not w.ready or w.lost]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for key, events in self._selector.select(timeout):
            if key.fileobj is self._woken:
                self._woken.recv(4096)
            elif key.fileobj is self._template.control:
                self._hear()
            elif not self._listens(key.data):
                continue  # an earlier event of this turn has ended it
            elif events & selectors.EVENT_WRITE:
                self._push(key.data)
            else:
                self._read(key.data)
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.deadline <= now and (worker.job or not worker.ready or worker.lost):
                self._overdue(worker)

    def _listens(self, worker: _Worker) -> bool:
        return self._workers.get(worker.number) is worker and not worker.lost

    def _hand_out(self) -> None:
        idle = [w for w in self._workers.values() if w.ready and not w.job and not w.lost]
        while idle and self._waiting:
            job = self._waiting.popleft()
            if job.future.set_running_or_notify_cancel():
                self._give(idle.pop(), job)
        alive = [w for w in self._workers.values() if not w.lost]
        coming = sum(not w.ready for w in alive)
        for _ in range(min(self.num_workers - len(alive), len(self._waiting) - coming)):
            self._start_worker()

    def _start_worker(self) -> None:
        self._numbers += 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        deadline = time.monotonic() + START_DEADLINE_S
        worker = _Worker(self._numbers, ours, deadline)
        self._workers[worker.number] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)
        with theirs:
            self._template.fork(worker.number, theirs.fileno())

    def _give(self, worker: _Worker, job: _Job) -> None:
        self._numbers += 1
        job.number = self._numbers
        job.begin = time.monotonic()
        worker.job = job
        worker.deadline = job.begin + self.deadline_s * job.call.count
        header = CALL.pack(len(job.payload), job.number)
        worker.outgoing = memoryview(header + job.payload)
        self._push(worker)

    def _push(self, worker: _Worker) -> None:
        """Sends what the socket takes now; the rest when it can take more."""
        try:
            worker.outgoing = worker.outgoing[worker.pipe.send(worker.outgoing) :]
        except BlockingIOError:
            pass
        except OSError:
            self._lose(worker)
            return
        write = selectors.EVENT_WRITE if worker.outgoing else 0
        self._selector.modify(worker.pipe, selectors.EVENT_READ | write, worker)

    def _read(self, worker: _Worker) -> None:
        try:
            data = worker.pipe.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(worker)
            return
        worker.incoming += data
        if len(worker.incoming) < ANSWER.size:
            return
        (length,) = ANSWER.unpack(worker.incoming[: ANSWER.size])
        count = worker.job.call.count if worker.job else 0
        limit = _MAX_ANSWER_BYTES + _BYTES_PER_VALUE * count
        if length > limit or len(worker.incoming) > ANSWER.size + length:
            self._fail(worker, "died", "it wrote something else than its answer to its socket")
        elif len(worker.incoming) == ANSWER.size + length:
            body = bytes(worker.incoming[ANSWER.size :])
            worker.incoming.clear()
            self._answer(worker, body)

    def _answer(self, worker: _Worker, body: bytes) -> None:
        try:
            reply: dict[str, Any] = json.loads(body)
            if not worker.ready and reply["ready"] is True:
                worker.ready = True
                return
            job = worker.job
            if job is None or reply["number"] != job.number:
                raise ValueError("an answer to no call")
            outcome = parse_answer(reply, job.call.count)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._fail(worker, "died", "it wrote something else than its answer to its socket")
            return
        self._starts = 0
        worker.job = None
        self._settle(job, outcome)
        if outcome.kind == "memory":  # what it holds may stay full
            self._fail(worker, "memory", "")

    def _settle(self, job: _Job, outcome: Outcome) -> None:
        seconds = time.monotonic() - job.begin
        job.future.set_result(dataclasses.replace(outcome, seconds=seconds))

    def _fail(self, worker: _Worker, kind: Kind, detail: str) -> None:
        """Has a worker killed; its call has failed."""
        self._drop(worker)
        self._template.kill(worker.number)
        if worker.job is not None:
            self._settle(worker.job, Outcome(kind=kind, detail=detail))
            worker.job = None

    def _lose(self, worker: _Worker) -> None:
        """Its socket is at an end: the template will say how it ended, or it is killed soon."""
        worker.lost = True
        worker.deadline = min(worker.deadline, time.monotonic() + 1.0)
        self._selector.unregister(worker.pipe)

    def _drop(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        if not worker.lost:
            self._selector.unregister(worker.pipe)
        worker.pipe.close()

    def _overdue(self, worker: _Worker) -> None:
        if not worker.ready and not worker.lost:
            raise RewardError(f"a reward worker did not start within {START_DEADLINE_S:g} s")
        if worker.lost:
            self._fail(worker, "died", "it closed its socket")
        else:
            count = worker.job.call.count if worker.job else 1
            self._fail(worker, "deadline", f"took longer than {self.deadline_s * count:g} s")

    def _hear(self) -> None:
        """Follows what the template says: which workers have ended."""
        messages = self._template.hear()
        for message in messages or ():
            worker = self._workers.get(message["ended"])
            if worker is not None and not worker.lost:
                self._read(worker)  # it may have answered before
            if worker is None or worker.number not in self._workers:
                continue
            self._drop(worker)
            if worker.job is not None:
                detail = _ending(message["code"])
                self._settle(worker.job, Outcome(kind="died", detail=detail))
            if not worker.ready:
                self._count_start("a reward worker ended before it was ready")
        if messages is None:
            self._restart()

    def _restart(self) -> None:
        """The template is gone, and its workers with it: begins again, but not for ever."""
        self._selector.unregister(self._template.control)
        self._template.end()
        for worker in list(self._workers.values()):
            self._drop(worker)
            if worker.job is not None:
                detail = "the process that starts workers ended"
                self._settle(worker.job, Outcome(kind="died", detail=detail))
        self._count_start("the process that starts reward workers ended")
        self._begin()

    def _count_start(self, what: str) -> None:
        self._starts += 1
        if self._starts >= _MAX_STARTS:
            raise RewardError(f"{what}, {self._starts} times without an answer in between")
        _LOG.warning("%s; starting another", what)


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    hint = " (or by the kernel, out of memory)" if code == -9 else ""
    return f"its process was killed by signal {-code}{hint}"
