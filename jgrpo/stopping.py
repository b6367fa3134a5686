"""How a run is stopped from outside: the first signal saves, the second ends at once.

SIGTERM (a preemption) and SIGINT (Ctrl-C) ask a run to stop. Work that changes nothing but time,
such as sampling, is interrupted; an update is finished first. If that and the save take longer
than the grace period, the process ends without the save, and the run continues later from the
checkpoint before: since a step is a function of config and state, nothing but time is lost.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REPEAT_S = 1.0  # schedulers signal a process and its parent, which passes it on: one request
_RETRY_S = 0.02  # between two tries to interrupt the main thread

EXIT_CODES = {"SIGTERM": 75, "SIGINT": 130}
"""Exit code of a run that was asked to stop and has saved, by signal. 75 is `EX_TEMPFAIL`: the
same command continues. A second signal, or the end of the grace period, exits with 128 + its
number and without a save."""


class StopRequested(BaseException):
    """Unwinds work that may be thrown away. No handler of ordinary errors catches it."""


class Stopped(Exception):
    """A run has ended early because a signal asked it to.

    Attributes:
      signal: name of the signal.
    """

    def __init__(self, signal_name: str, message: str) -> None:
        super().__init__(message)
        self.signal = signal_name


class Stopping:
    """Watches for signals while it is entered. Elsewhere than in the main thread it does nothing.

    Attributes:
      requested: name of the signal that has come; empty before.
    """

    def __init__(self, grace_s: float, agreed: Callable[[str], str] | None = None) -> None:
        """Nothing is watched yet.

        Args:
          grace_s: seconds between the first signal and the end of the process.
          agreed: of several processes, makes of what each was asked what all do (`hosts.agreed`).
            Then nothing is interrupted, since the others would wait for what was left: `check`
            is asked before each part of the work.
        """
        self.requested = ""
        self._grace_s = grace_s
        self._agreed = agreed
        self._may_unwind = False
        self._alarming = threading.Lock()  # held while an alarm is sent: none comes after the end
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is not threading.main_thread():
            return self
        # A Python handler waits for C code (a compilation) to return; the wake-up socket does not.
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._restore.callback(ours.close)
        self._restore.callback(theirs.close)
        previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._restore.callback(signal.set_wakeup_fd, previous)
        for number in _SIGNALS:
            self._restore.callback(signal.signal, number, signal.signal(number, self._handle))
        previous = signal.signal(signal.SIGALRM, self._unwind)
        self._restore.callback(signal.signal, signal.SIGALRM, previous)
        threading.Thread(target=self._watch, args=(ours,), name="stopping", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._alarming:
            self._may_unwind = False
        self._restore.close()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Marks work that a signal may throw away.

        Raises:
          StopRequested: on entry or at any moment inside, once a signal has come.
        """
        if self._agreed is not None:
            self.check()
            yield
            return
        self._may_unwind = True
        try:
            if self.requested:
                raise StopRequested
            yield
        finally:
            self._may_unwind = False

    def check(self) -> None:
        """Leaves work that may be thrown away, if any process has been asked to stop.

        Raises:
          StopRequested: then, in all of them.
        """
        asked = self.requested if self._agreed is None else self._agreed(self.requested)
        if asked:
            self.requested = asked
            raise StopRequested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, signal.Signals(number).name
        if first:
            self._unwind(number, frame)

    def _unwind(self, _: int, frame: FrameType | None) -> None:
        """Leaves interruptible work, unless Python would drop the exception (`_alarm` goes on)."""
        if self.requested and self._may_unwind and not _is_dropped(frame):
            self._may_unwind = False  # the way out is not interrupted
            raise StopRequested

    def _alarm(self) -> None:
        """Wakes the main thread in interruptible work.

        The signal itself may have come to another thread, or a moment before the main thread
        began to wait: Python runs its handler only once that wait is over.
        """
        with self._alarming:
            if self._may_unwind:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    def _watch(self, wakeups: socket.socket) -> None:
        """Ends the process at a second signal, or when the grace period after the first ends."""
        try:
            number = _next_signal(wakeups, None)
            if number is None:
                return
            name = signal.Signals(number).name
            tell(f"{name}: saving, then stopping; a second signal stops at once\n")
            number = self._await_the_end(wakeups) or number
            tell(f"{name}: ending without a save; the newest checkpoint is intact\n")
        except (OSError, ValueError):  # The socket was closed: the run has ended by itself.
            return
        os._exit(128 + number)

    def _await_the_end(self, wakeups: socket.socket) -> int | None:
        """The number of the second signal; None when the grace period is over."""
        first = now = time.monotonic()
        while now < first + self._grace_s:
            self._alarm()
            number = _next_signal(wakeups, min(_RETRY_S, first + self._grace_s - now))
            now = time.monotonic()
            if number is not None and now > first + _REPEAT_S:
                return number
        return None


def _is_dropped(frame: FrameType | None) -> bool:
    """True inside a finalizer or a callback of the garbage collector (jax has one).

    Python prints what is raised there and goes on.
    """
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False


def _next_signal(wakeups: socket.socket, timeout_s: float | None) -> int | None:
    """The number of the next signal; None after the timeout.

    Raises:
      OSError: if the socket is closed, which ends the watch.
    """
    while True:
        ready, _, _ = select.select([wakeups], [], [], timeout_s)
        if not ready:
            return None
        data = wakeups.recv(1)
        if not data:
            raise OSError("closed")
        if data[0] in _SIGNALS:
            return data[0]


def tell(text: str) -> None:
    """Writes to stderr past all buffers, from a thread beside a main thread that may hang."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), text.encode())
