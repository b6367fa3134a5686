"""The trainer's side of the template process: starts it, has it fork and kill workers.

What the process itself does is in `worker.py`. Only the pool's thread uses this: on Linux a
process that asks to die with its parent dies with the thread that started it.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from jgrpo.rewards.calls import Description, RewardError

START_DEADLINE_S = 120.0
"""Seconds that the import of one function, or the start of a worker, may take."""

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_END_S = 5.0
_LOG_EVERY_S = 10.0
# The workers are the parallelism; a library's threads would not survive the fork. The trainer holds
# the accelerator, hence JAX_PLATFORMS below.
_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PROGRAM = """\
import json, sys
fd, parent, path = json.loads(sys.argv[1])
sys.path[:] = path
from jgrpo.rewards.worker import main
main(fd, parent)
"""


class Template:
    """The process that has imported the functions and forks the workers."""

    def __init__(self, functions: Mapping[str, str], memory_mb: int) -> None:
        """Describes it; starts nothing.

        Args:
          functions: each with the name of a package that it imports late, or "".
          memory_mb: MiB that a worker may use beyond the imports; 0: no limit.
        """
        self._setup = {"functions": list(functions.items()), "memory_bytes": memory_mb * 2**20}
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = b""
        self.control: socket.socket

    def start(self, cancelled: Callable[[], bool]) -> Mapping[str, Description]:
        """Starts the process and waits until everything is imported.

        Args:
          cancelled: asked now and then; if it says so, waiting ends with a RewardError.

        Raises:
          ValueError: naming the function whose import failed, ended the process, or took longer
            than `START_DEADLINE_S`.
        """
        self.control, theirs = socket.socketpair()
        path = [entry or os.getcwd() for entry in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _PROGRAM),
                    json.dumps([theirs.fileno(), os.getpid(), path]),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**_DEFAULTS, **os.environ, "JAX_PLATFORMS": "cpu"},
            )
        self._lines = b""
        self._say(self._setup)
        self.control.settimeout(_POLL_S)
        importing = "its own modules"
        begin = logged = time.monotonic()
        while True:
            try:
                messages = self.hear()
            except TimeoutError:
                messages = []
            for message in messages or ():
                if "importing" in message:
                    importing, begin = repr(message["importing"]), time.monotonic()
                elif "failed" in message:
                    raise ValueError(f"reward {importing}: importing it raised {message['failed']}")
                else:
                    return self._ready(message)
            now = time.monotonic()
            if messages is None:
                code = self._process.wait(_END_S)
                raise ValueError(
                    f"reward {importing}: importing it ended the process (exit code {code})"
                )
            if now - begin > START_DEADLINE_S:
                raise ValueError(
                    f"reward {importing}: importing it took longer than {START_DEADLINE_S:g} s"
                )
            if now - logged > _LOG_EVERY_S:
                logged = now
                _LOG.warning("waiting for a reward process to import %s", importing)
            if cancelled():
                raise RewardError("the reward pool was closed")

    def _ready(self, message: Mapping[str, Any]) -> Mapping[str, Description]:
        self.control.settimeout(_END_S)
        if message["threads"]:
            _LOG.warning(
                "the imports of the reward functions started %d threads, which workers do not "
                "have; start them inside the function",
                message["threads"],
            )
        return {path: Description(**fields) for path, fields in message["ready"].items()}

    def fork(self, worker: int, fd: int) -> None:
        """Asks for a worker of this number that serves the socket `fd`."""
        order = json.dumps({"start": worker}).encode() + b"\n"
        # If the process is gone, the end of its socket says so to the pool.
        with contextlib.suppress(OSError):
            socket.send_fds(self.control, [order], [fd])

    def kill(self, worker: int) -> None:
        """Asks that a worker and all its descendants are killed."""
        self._say({"kill": worker})

    def hear(self) -> list[dict[str, Any]] | None:
        """What the process has said since the last call; None at the end of its socket.

        Raises:
          TimeoutError: if it says nothing for a while.
        """
        try:
            data = self.control.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            return None
        *lines, self._lines = (self._lines + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        """Ends the process, its workers and their descendants. Nothing happens a second time."""
        if self._process is None:
            return
        self.control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_S)
        self._process = None

    def _say(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # as in `fork`
            self.control.sendall(json.dumps(message).encode() + b"\n")
