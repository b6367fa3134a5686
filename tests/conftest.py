"""What every test runs under: eight simulated CPU devices, no network, strict shapes.

Environment variables where possible, so that programs started by a test inherit them. jax reads
them when it is imported, hence the order of the lines here.
"""

import getpass
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Outside the checkout: compiled CPU code must not travel to another machine with it. A bounded
# cache also locks its files, which the worker processes of pytest-xdist need.
_CACHE = Path(tempfile.gettempdir()) / f"jgrpo-test-cache-{getpass.getuser()}"

os.environ.update(
    XLA_FLAGS="--xla_force_host_platform_device_count=8",
    JAX_PLATFORMS="cpu",
    JAX_COMPILATION_CACHE_DIR=str(_CACHE),
    JAX_COMPILATION_CACHE_MAX_SIZE=str(2 * 1024**3),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

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


@pytest.fixture(scope="session", autouse=True)
def _eight_devices() -> None:
    assert jax.device_count() == 8, f"expected 8 simulated devices, got {jax.devices()}"


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Thousands of tests would hold many GiB of them; what a later module needs is on disk."""
    yield
    jax.clear_caches()


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
