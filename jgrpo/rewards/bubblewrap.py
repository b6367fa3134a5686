"""Programs in CPython under bubblewrap: all of Python and its standard library, on Linux.

Each program gets namespaces of its own (no network, no other processes in sight), a file system
that holds the interpreter and nothing of ours, read-only but for a small /tmp, no capabilities, the
limits of `resource`, and a filter of system calls that refuses new processes, threads and sockets.
It dies with the process that started it. The kernel is the wall here, where Monty has none to
climb: choose this for programs that Monty does not know how to run.
"""

import contextlib
import json
import math
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jgrpo.rewards.plain import Call, Clock, Limits, Plain, ProgramError, decode, encode
from jgrpo.rewards.seccomp import filter_program

_START_S = 20.0
_TMP_BYTES = 16 << 20
_HOUSE = "/jgrpo-guest"
_PROGRAM = f"import sys; sys.path.append({_HOUSE!r}); from jgrpo.rewards.guest import main; main()"


def find() -> str:
    """Returns where bwrap is.

    Raises:
      FileNotFoundError: if it is not installed.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise FileNotFoundError(
            "sandbox 'bwrap' needs the program bwrap: install the package bubblewrap of your Linux "
            "distribution, or use sandbox: monty"
        )
    return path


@contextlib.contextmanager
def program(source: str, limits: Limits) -> Iterator[Call]:
    """Runs a program and keeps it, so that its functions can be called while the context is open.

    Args:
      source: the program; it need not be trusted.
      limits: what it may use up.

    Returns:
      A context of the function that calls; it raises ProgramError as this one does.

    Raises:
      ProgramError: if the program does not run to its end.
      RuntimeError: if bwrap cannot start.
    """
    with _Guest(limits) as guest:
        clock = Clock(limits)
        clock.run(lambda: _value(guest.ask(source=source, functions=[]), limits))

        def call(name: str, arguments: Sequence[Plain], named: Mapping[str, Plain]) -> Plain:
            request = {"arguments": _written(list(arguments)), "named": _written(dict(named))}
            return clock.run(lambda: _value(guest.ask(call=name, **request), limits))

        yield call


def run(source: str, functions: Mapping[str, Callable[..., Plain]], limits: Limits) -> None:
    """Runs a program to its end; some of its names are functions of this process.

    Args:
      source: the program.
      functions: by name; they take and return plain data.
      limits: what the program may use up, not counting the time of those functions.

    Raises:
      ProgramError: if it does not run to its end.
      RuntimeError: if bwrap cannot start.
    """
    with _Guest(limits) as guest:
        clock = Clock(limits)
        reply = clock.run(lambda: guest.ask(source=source, functions=list(functions)))
        while "call" in reply:
            answer = _answer(functions, reply, limits)
            reply = clock.run(lambda answer=answer: guest.ask(**answer))
        _value(reply, limits)


def _answer(
    functions: Mapping[str, Callable[..., Plain]], reply: Mapping[str, Any], limits: Limits
) -> dict[str, Any]:
    arguments, named = (
        decode(str(reply.get(key)), limits.output_chars) for key in ("arguments", "named")
    )
    function = functions.get(str(reply["call"]))
    if function is None or not isinstance(arguments, list) or not isinstance(named, dict):
        raise ProgramError("refused", "a call that is none")
    try:
        return {"value": _written(function(*arguments, **named))}
    except RuntimeError as error:
        return {"error": str(error)}


def _value(reply: Mapping[str, Any], limits: Limits) -> Plain:
    if "error" in reply:
        name = str(reply["error"])[:100]
        kind = "limit" if name in ("MemoryError", "RecursionError") else "raised"
        raise ProgramError(kind, f"{name}: {reply.get('detail')}")
    return decode(str(reply.get("value")), limits.output_chars)


def _written(value: Plain) -> str:
    return json.dumps(encode(value))


class _Guest:
    """A process in the sandbox. Use it as a context; its end is the end of the process."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._read = b""

    def __enter__(self) -> "_Guest":
        rules, theirs = os.pipe()
        os.write(theirs, filter_program(platform.machine()))
        os.close(theirs)
        try:
            self._process = subprocess.Popen(
                _command(find(), rules, self._limits),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[rules],
                start_new_session=True,
            )
        finally:
            os.close(rules)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        self._in, self._out = stdin.fileno(), stdout.fileno()
        os.set_blocking(self._in, False)
        try:
            self._exchange(b"", _START_S)
        except ProgramError as error:
            self._process.kill()
            _, said = self._process.communicate()
            text = said.decode(errors="replace").strip()[:500]
            raise RuntimeError(f"bwrap could not start: {text or error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        # The pipes close as well; what a program left in them is of no interest.
        with contextlib.suppress(BrokenPipeError):
            self._process.__exit__(None, None, None)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the reply, which may be anything that is an object.

        Raises:
          ProgramError: if there is none in time, or it is too long.
        """
        return self._exchange(json.dumps(request).encode() + b"\n", self._limits.time_s)

    def _exchange(self, data: bytes, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        most = 8 * self._limits.output_chars + 10_000  # a character takes up to 7 bytes in JSON
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            readable, writable, _ = select.select(
                [self._out], [self._in] if data else [], [], max(0.0, left)
            )
            if left <= 0 or len(self._read) > most:
                self._process.kill()
                raise ProgramError("limit", "no answer in time" if left <= 0 else "a long answer")
            if writable:
                try:
                    data = data[os.write(self._in, data[:65536]) :]
                except BrokenPipeError:
                    data = b""
            if readable:
                part = os.read(self._out, 65536)
                if not part:
                    raise ProgramError("raised", "the program ended its process")
                self._read += part
        line, _, self._read = self._read.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProgramError("refused", "no message") from error
        if not isinstance(reply, dict):
            raise ProgramError("refused", "no message")
        return reply


def _command(bwrap: str, rules: int, limits: Limits) -> list[str]:
    python = os.path.realpath(sys.executable)
    here = Path(__file__).parent
    mine = [
        part
        for name in ("plain.py", "guest.py")
        for part in ("--ro-bind", str(here / name), f"{_HOUSE}/jgrpo/rewards/{name}")
    ]
    return [
        *(bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"),
        *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "sandbox"),
        *("--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LC_ALL", "C.UTF-8"),
        *_system_folders(python),
        *("--proc", "/proc", "--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"),
        *mine,
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(rules)),
        *("--", python, "-s", "-S", "-P", "-B", "-c", _PROGRAM, json.dumps(_resources(limits))),
    ]


def _system_folders(python: str) -> list[str]:
    """What the interpreter needs, and no more: not the data, not the home folders."""
    parts = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            parts += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            parts += ["--ro-bind", folder, folder]
    for folder in {os.path.realpath(sys.base_prefix), os.path.dirname(os.path.dirname(python))}:
        if not folder.startswith("/usr/") and folder not in ("/", "/usr"):
            parts += ["--ro-bind", folder, folder]
    return parts


def _resources(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": math.ceil(limits.time_s) + 1,
        "RLIMIT_FSIZE": _TMP_BYTES,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
