"""The processes behind the pool: a template that has imported the functions, and its workers.

The template imports once and then only forks workers, kills them, and reports their ends; it runs
no function, so it can always answer. A worker is a fork of it: it starts in milliseconds, takes
one call at a time, and answers with plain numbers. Standard library only, and never jax: nothing
of the trainer is loaded here.

A call comes as a header (length, number) and a pickle; the answer is a header (length) and JSON.
Template and trainer exchange lines of JSON.
"""

import json
import os
import pickle
import random
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

from jgrpo.rewards import processes
from jgrpo.rewards.calls import Call, Description, checked, describe, run

CALL = struct.Struct("!QQ")
"""Header of a call: bytes of the pickle that follows, number of the call."""
ANSWER = struct.Struct("!Q")
"""Header of an answer: bytes of the JSON that follows."""

_PATIENCE_S = 1.0
_Functions: TypeAlias = Mapping[str, tuple[Callable[..., Any], Description]]


def main(control_fd: int, parent: int) -> NoReturn:
    """The life of the template.

    Args:
      control_fd: its socket to the trainer. The first line says what to import.
      parent: process id of the trainer.
    """
    processes.die_with(parent, signal.SIGKILL)  # while foreign code is imported
    control = socket.socket(fileno=control_fd)
    setup = json.loads(_first_line(control))
    functions = {}
    for path, package in setup["functions"]:
        _say(control, importing=path)
        try:
            functions[path] = describe(path, package)
        except BaseException as error:  # The boundary: whatever an import raises is told.
            _say(control, failed=f"{type(error).__name__}: {error}"[:2000])
            os._exit(1)
    descriptions = {path: vars(described) for path, (_, described) in functions.items()}
    _say(control, ready=descriptions, threads=threading.active_count() - 1)
    _Template(control, functions, setup["memory_bytes"], parent).run()


class _Template:
    """Forks workers and buries them."""

    def __init__(
        self, control: socket.socket, functions: _Functions, memory_bytes: int, parent: int
    ) -> None:
        self._control = control
        self._functions = functions
        self._memory_bytes = memory_bytes
        self._workers: dict[int, int] = {}  # process id to the trainer's number of the worker
        self._fds: list[int] = []
        self._lines = b""
        self._woken, self._waker = socket.socketpair()
        processes.inherit_orphans()
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        processes.die_with(parent, signal.SIGTERM)
        for end in (self._woken, self._waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        """Serves until the trainer closes the socket or is gone."""
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._bury()
            if self._control in ready and not self._take():
                self._end()

    def _take(self) -> bool:
        """Reads and follows orders; False at the end of the socket."""
        data, fds, _, _ = socket.recv_fds(self._control, 65536, 64)
        self._fds += fds
        self._lines += data
        *lines, self._lines = self._lines.split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "start" in order:
                self._fork(order["start"], self._fds.pop(0))
            else:
                for pid, worker in self._workers.items():
                    if worker == order["kill"]:
                        processes.end_tree(pid)
        return bool(data)

    def _fork(self, worker: int, fd: int) -> None:
        template = os.getpid()
        pid = os.fork()
        if pid:
            os.close(fd)
            self._workers[pid] = worker
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for end in (self._control, self._woken, self._waker):
                end.close()
            for other in self._fds:
                os.close(other)
            os.setpgid(0, 0)
            processes.die_with(template, signal.SIGKILL)
            processes.inherit_orphans()
            processes.forbid_core_files()
            if self._memory_bytes:
                processes.limit_memory(self._memory_bytes)
            _serve(socket.socket(fileno=fd), self._functions)
        finally:
            os._exit(0)  # never back into the life of the template

    def _bury(self) -> None:
        """Reports workers that ended, and kills what they left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._workers:
                if not processes.LINUX:
                    processes.end_tree(pid)  # its group
                code = os.waitstatus_to_exitcode(status)
                _say(self._control, ended=self._workers.pop(pid), code=code)
        for orphan in set(processes.children()) - set(self._workers):
            processes.end_tree(orphan)

    def _end(self) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in self._workers:
            processes.end_tree(pid)
        processes.end_children(_PATIENCE_S)
        os._exit(0)


def _serve(pipe: socket.socket, functions: _Functions) -> None:
    """The life of a worker: says that it is ready, then answers calls until the socket closes."""
    worker = os.getpid()
    _send(pipe, {"ready": True})
    while header := _receive(pipe, CALL.size):
        length, number = CALL.unpack(header)
        payload = _receive(pipe, length)
        if payload is None:
            return
        reply = _reply(functions, payload)
        if os.getpid() != worker:
            os._exit(0)  # the function forked, and this is the child that came back
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm it set would hit the next call
        processes.end_children(_PATIENCE_S)
        _send(pipe, {"number": number} | reply)
        if reply.get("kind") == "memory":
            return


def _reply(functions: _Functions, payload: bytes) -> dict[str, Any]:
    kind = "raised"
    try:
        call: Call = pickle.loads(payload)
        random.seed(call.seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(random.getrandbits(32))
        returned = run(*functions[call.function], call)
        kind = "value"
        return {"values": checked(returned, call.count)}
    except MemoryError as error:
        return {"kind": "memory", "detail": f"{_text(error)}; the limit is reward.memory_mb"}
    except BaseException as error:  # The boundary: whatever a foreign function raises is told.
        return {"kind": kind, "detail": _text(error)}


def _text(error: BaseException) -> str:
    """The error in one line, with the place that raised it."""
    try:
        words = f"{type(error).__name__}: {error}"[:500]
    except BaseException as second:  # The error's own text may be foreign code too.
        words = f"{type(error).__name__} (its text raised {type(second).__name__})"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return words.encode("utf-8", "replace").decode() + place


def _send(pipe: socket.socket, reply: Mapping[str, Any]) -> None:
    data = json.dumps(reply, allow_nan=False).encode()
    pipe.sendall(ANSWER.pack(len(data)) + data)


def _receive(pipe: socket.socket, length: int) -> bytes | None:
    """So many bytes; None if the socket ends before."""
    parts = bytearray()
    while len(parts) < length:
        part = pipe.recv(min(length - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _say(control: socket.socket, **message: Any) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def _first_line(control: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = control.recv(65536)
        if not part:
            os._exit(0)
        line += part
    return line
