"""A malloc that keeps large arrays, in huge pages, on Linux.

XLA's CPU backend takes the temporaries of each step from malloc and gives them back; the kernel
mapping them anew at every step, page by page, cost a learner up to half of its time
(docs/performance.md). glibc asks for huge pages, and keeps what was freed for the next step, only
if the environment says so when a process starts.
"""

import os
import sys

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # madvise, for kernels that give huge pages to those who ask
    "glibc.malloc.mmap_max": 0,  # no array has a mapping of its own, which would end with it
    "glibc.malloc.trim_threshold": 1 << 40,  # what is free at the heap's end is not given back
    "glibc.malloc.arena_max": 1,  # what one thread has freed serves the others
}
_FIRST_GLIBC = (2, 35)


def with_kept_pages() -> None:
    """Starts this program again, once, with a malloc that keeps large arrays in huge pages.

    To be called first thing by a program, before it has imported or opened anything. Does nothing
    where glibc has no such choice, or where GLIBC_TUNABLES makes one of these choices already.
    """
    before = os.environ.get(_VARIABLE, "")
    if any(name in before for name in _TUNABLES) or not _can_choose():
        return
    ours = [f"{name}={value}" for name, value in _TUNABLES.items()]
    os.environ[_VARIABLE] = ":".join(filter(None, [before, *ours]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_choose() -> bool:
    """True if this process has a glibc that can be told."""
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    try:
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= _FIRST_GLIBC
    except ValueError:
        return False
