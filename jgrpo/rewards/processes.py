"""What the pool asks of the operating system: whose descendants live, who dies with whom, memory.

Standard library only: the worker processes import this. On Linux no descendant escapes, because
a subreaper inherits the orphans below it, whatever session or group they moved to. Elsewhere a
worker's process group is killed, memory is not limited, and a process that left the group stays.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

LINUX = sys.platform == "linux"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MAX_SCANS = 50


def inherit_orphans() -> None:
    """Makes this process the parent of every orphan among its descendants (Linux)."""
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int, number: signal.Signals) -> None:
    """Has the kernel send this process a signal when its parent ends (Linux).

    Args:
      parent: process id of the parent; if it has ended already, this process ends now.
      number: the signal.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit_memory(extra_bytes: int) -> None:
    """Limits the address space of this process to what it has now and so much more (Linux).

    Each process that it starts has the same limit for itself.
    """
    if LINUX:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = now + extra_bytes
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def forbid_core_files() -> None:
    """A crash of this process leaves no core file behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def children() -> list[int]:
    """The living children of this process (Linux; elsewhere none are found)."""
    return [pid for pid, parent in _parents().items() if parent == os.getpid()]


def end_descendants(pid: int) -> None:
    """Kills every descendant of a process (Linux).

    They are stopped first, level by level until no new one appears, so that none can start another
    while the rest are killed. A process with a signal pending cannot fork.
    """
    stopped: set[int] = set()
    for _ in range(_MAX_SCANS):
        fresh = _descendants(pid) - stopped
        if not fresh:
            break
        for other in fresh:
            send(other, signal.SIGSTOP)
        stopped |= fresh
    for other in stopped:
        send(other, signal.SIGKILL)


def end_tree(pid: int) -> None:
    """Kills a process and all that descend from it; elsewhere than on Linux, its group."""
    if LINUX:
        send(pid, signal.SIGSTOP)
        end_descendants(pid)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    send(pid, signal.SIGKILL)


def end_children(patience_s: float) -> None:
    """Kills all descendants of this process and waits until they have ended.

    Args:
      patience_s: longest wait, for processes that the kernel does not let go at once.
    """
    give_up = time.monotonic() + patience_s
    while _reap() and time.monotonic() < give_up:
        if LINUX:
            end_descendants(os.getpid())
        time.sleep(0.001)


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal; nothing happens if the process is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap() -> bool:
    """Buries ended children; says whether others live."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return LINUX  # elsewhere children cannot be found, so there is nothing to wait for


def _descendants(pid: int) -> set[int]:
    parents = _parents()
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return found


def _parents() -> dict[int, int]:
    """The parent of every living process; zombies are left out."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if LINUX else ():
        if name.isdigit():
            # A process may end between the listing and the reading.
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    parents[int(name)] = int(parent)
    return parents
