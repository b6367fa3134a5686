"""Ends a process that would wait for ever: for another one that is gone, or for its own next step.

The processes of a run tell each other once a second, through jax's coordination service, that they
are alive. One that dies, is stopped or is cut off falls silent; one that ends by an error says so
before. Then the others end too, with the name of the missing one: none can go on alone. A process
that is alive and yet makes no step ends by its own watch.
"""

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import NamedTuple

import jax

from jgrpo.parallel import service
from jgrpo.parallel.hosts import several
from jgrpo.stopping import EXIT_CODES, Stopped, tell

MISSING, HANGS = 75, 70
"""Exit codes: another process is missing, and the same command on all continues (`EX_TEMPFAIL`);
no step has ended for too long (`EX_SOFTWARE`)."""

_KEY = "jgrpo/alive/"
_BEAT_S = 1.0
_LOOK_S = 0.2
_DONE, _ENDED = "is done", "has ended: "


class _Sign(NamedTuple):
    """The newest sign of life of a process, and when it was first seen here."""

    text: str
    seen: float


class Watch:
    """Watches, while it is entered, whether the run goes on."""

    def __init__(self, host_timeout_s: float, step_timeout_s: float) -> None:
        """Nothing is watched yet.

        Args:
          host_timeout_s: seconds after the last sign of life of another process until this one
            ends.
          step_timeout_s: seconds after `moved` until it ends; 0: none are too many.
        """
        self._host_timeout_s = host_timeout_s
        self._step_timeout_s = step_timeout_s
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._process = jax.process_index() if several() else 0
        self._name = f"process {self._process} on {socket.gethostname()}"
        self._signs: dict[int, _Sign] = {}
        self._heard = time.monotonic()  # from the coordination service
        self._telling = threading.Thread(target=self._tell, name="alive", daemon=True)

    def __enter__(self) -> "Watch":
        if several():
            now = time.monotonic()
            self._signs = {i: _Sign("", now) for i in range(jax.process_count())}
            self._telling.start()
        threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if several() and isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely another process was lost in an exchange: the watch finds out which.
            tell(f"{self._name}: {str(error).splitlines()[0]}\n")
            self._over.wait(self._host_timeout_s + 3 * _BEAT_S)
        self._over.set()
        if not several():
            return
        self._telling.join(2 * _BEAT_S)  # or its sign might follow the last one
        failed = error is not None and not isinstance(error, Stopped)
        last = f"{_ENDED}{type(error).__name__}: {error}"[:500] if failed else _DONE
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._put(f"{self._name} {last}")
        if failed:  # jax would wait at the exit for the others, which end by what was just said
            atexit.register(leave, 1)

    def moved(self) -> None:
        """Notes that a step, an evaluation or a save has ended."""
        self._moved = time.monotonic()

    def _put(self, text: str) -> None:
        service.say(_KEY, self._process, text)

    def _tell(self) -> None:
        """Tells the others that this process is alive, and notes what they say."""
        beat = 0
        while not self._over.is_set():
            try:
                self._put(f"{self._name} {beat}")
                found = service.said(_KEY)
            except jax.errors.JaxRuntimeError:
                time.sleep(_BEAT_S)  # the one that holds the service may be gone: `_look` sees it
                continue
            now, beat = time.monotonic(), beat + 1
            for process, text in found.items():
                if self._signs[process].text != text:
                    self._signs[process] = _Sign(text, now)
            self._heard = now
            self._over.wait(_BEAT_S)

    def _look(self) -> None:
        """Ends this process when there is a reason."""
        while not self._over.wait(_LOOK_S):
            now = time.monotonic()
            if self._signs and (missing := self._missing(now)):
                self._end(f"{missing}; the same command on all hosts continues", MISSING)
            if self._step_timeout_s and now - self._moved > self._step_timeout_s:
                where = sys._current_frames().get(self._main)
                stack = "".join(traceback.format_stack(where)[-8:]) if where else ""
                self._end(
                    f"no step, evaluation or save has ended for {self._step_timeout_s:g} s "
                    f"(run.watchdog_s); it stands here:\n{stack}",
                    HANGS,
                )

    def _missing(self, now: float) -> str:
        """Which process is missing, and how that shows; empty if none is."""
        limit = self._host_timeout_s
        silent = f"has given no sign of life for {limit:g} s (run.host_timeout_s)"
        if now - self._heard > limit:
            return f"process 0, through which all hear of each other, {silent}"
        for process, sign in self._signs.items():
            if process == self._process or sign.text.endswith(_DONE):
                continue
            if _ENDED in sign.text:
                return sign.text
            if now - sign.seen > limit:
                return f"{sign.text.rpartition(' ')[0] or f'process {process}'} {silent}"
        return ""

    def _end(self, reason: str, code: int) -> None:
        tell(f"{self._name}: {reason}\n")
        _exit(code)


def leave(code: int) -> int:
    """Returns an exit code; one of several processes that has failed ends here, at once.

    jax would wait at the usual exit for the others, which may never come. Where all have been asked
    to stop, they do.
    """
    if code and code not in EXIT_CODES.values() and several():
        sys.stdout.flush()
        sys.stderr.flush()
        _exit(code)
    return code


def _exit(code: int) -> None:
    """Ends this process past jax, once the others can have heard why."""
    if several() and jax.process_index() == 0:
        time.sleep(2 * _BEAT_S)  # they lose the service with this process
    os._exit(code)
