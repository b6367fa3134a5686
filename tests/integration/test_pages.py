"""A program starts again, once, with a malloc that keeps; nothing of its call is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from quickstart_runs import ROOT

from jgrpo import pages

pytestmark = pytest.mark.skipif(not pages._can_choose(), reason="no glibc to tell")
PROGRAM = """
import os, sys
print("begins", os.getpid(), flush=True)
from jgrpo.pages import with_kept_pages
with_kept_pages()
def resident(kind):
    return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith(kind))
large = b"x" * 2**29  # numpy would ask for huge pages itself
huge = resident("AnonHuge") > 2**18
del large
kept = resident("Rss:") > 2**18
print("goes on", sys.argv[1:], os.environ["GLIBC_TUNABLES"], huge, kept, sys.stdin.read())
raise SystemExit(7)
"""


def said(tunables):
    """What the program prints, line by line; it is asked to end with code 7."""
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "a b", "--c"],
        cwd=ROOT,
        env=env | tunables,
        input="words",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    return done.stdout.splitlines()


OURS = ":".join(f"{name}={value}" for name, value in pages._TUNABLES.items())
HUGE = "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()


def test_a_program_starts_again_and_keeps_its_pages():
    first, second, last = said({})
    assert first == second  # the same process
    assert last == f"goes on ['a b', '--c'] {OURS} {HUGE} True words"


def test_what_was_set_is_kept():
    *begun, last = said({"GLIBC_TUNABLES": "glibc.malloc.check=0"})
    assert len(begun) == 2
    assert f"glibc.malloc.check=0:{OURS} {HUGE} True" in last


def test_whoever_has_chosen_is_left_alone():
    *begun, last = said({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
    assert len(begun) == 1
    assert "hugetlb=0 False False" in last
