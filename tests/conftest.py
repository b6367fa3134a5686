"""What every test runs under: eight simulated CPU devices, no network, strict shapes.

Environment variables where possible, so that programs started by a test inherit them. jax reads
them when it is imported, hence the order of the lines here.
"""

import gc
import getpass
import importlib
import importlib.util
import itertools
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Outside the checkout: compiled CPU code must not travel to another machine with it. A bounded
# cache also locks its files, which the worker processes of pytest-xdist need.
_CACHE = Path(tempfile.gettempdir()) / f"jgrpo-test-cache-{getpass.getuser()}"

# Small programs that run once are compiled more often than they run: half the time of the suite was
# LLVM's. Tests of what a compiler makes of a program ask for its full work (`FULLY_OPTIMISED`).
_QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

os.environ.update(
    XLA_FLAGS=f"--xla_force_host_platform_device_count=8 {_QUICKLY_COMPILED}",
    # Threads of XLA. A collective holds one until all devices have come to it, and a device may be
    # in several at once: with as many threads as devices they wait for each other for ever.
    NPROC="32",
    JAX_PLATFORMS="cpu",
    JAX_COMPILATION_CACHE_DIR=str(_CACHE),
    JAX_COMPILATION_CACHE_MAX_SIZE=str(2 * 1024**3),
    # Every new entry reads the time stamps of all others, so what is quick is compiled again.
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.6",
    JAX_TRACEBACK_IN_LOCATIONS_LIMIT="0",  # nobody reads source lines here
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

# The TPU's compiler works without a TPU; .ci/run puts it there.
_LIBTPU = Path(__file__).resolve().parents[1] / ".venv/libtpu/libtpu/libtpu.so"
if _LIBTPU.exists():
    os.environ.setdefault("TPU_LIBRARY_PATH", str(_LIBTPU))
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # asks no metadata server of a cloud

# jax fails on an entry whose second file is missing, as a process killed in between leaves it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    for _entry in _CACHE.glob("*-cache"):
        if not _entry.with_name(_entry.name.removesuffix("-cache") + "-atime").exists():
            _entry.unlink(missing_ok=True)

import jax  # noqa: E402 - it reads the environment when it is imported

# Not by the environment: programs that a test starts may broadcast as they like.
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests that need torch where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        skip = pytest.mark.skip(reason="needs torch: pip install torch")
        for item in items:
            if item.get_closest_marker("parity"):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What is imported by now lives as long as the process: the collector need not visit it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """Runs a test again, once, if its process has died.

    About one program in a thousand, `serialize()` of XLA's CPU backend ends in a segmentation
    fault (jaxlib 0.10.2), on its way into the cache above. A test that kills its process by itself
    does it twice.
    """
    if crashitem not in _CRASHED:
        _CRASHED.add(crashitem)
        report.outcome = "rerun"  # pyright: ignore[reportAttributeAccessIssue] - as xdist says
        sched.mark_test_pending(crashitem)


_CRASHED: set[str] = set()


@pytest.fixture(scope="session", autouse=True)
def _eight_devices() -> None:
    assert jax.device_count() == 8, f"expected 8 simulated devices, got {jax.devices()}"


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Thousands of tests would hold many GiB of them; what a later module needs is on disk."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _forget_before_the_kernel_refuses() -> Iterator[None]:
    """A process may have 65,530 mappings (vm.max_map_count), of which a program takes dozens.

    Beyond, XLA says `LLVM compilation error: Cannot allocate memory` and the process crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if next(_TESTS) % 10 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


_TESTS = itertools.count(1)


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have the first simulated device alone: programs for eight take longer to compile."""
    _only(1, monkeypatch)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have two simulated devices, likewise."""
    _only(2, monkeypatch)


def _only(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = jax.devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    monkeypatch.setattr(jax, "device_count", lambda *_: count)


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], types.ModuleType]]:
    """Imports a program of benchmarks/ by its name; they import each other."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data beside the checkout; the test is skipped where there is none."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    return path
