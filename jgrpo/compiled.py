"""Compiled programs: kept on disk between runs, counted while a run asks for them."""

import contextlib
import dataclasses
import hashlib
import platform
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from jgrpo.parallel import hosts

_MIN_COMPILE_S = 0.3
_ASKED = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"


@contextlib.contextmanager
def kept_on_disk(folder: Path, wanted: str) -> Iterator[None]:
    """Keeps compiled programs under a folder, so that the next process need not compile them.

    Does nothing where the user has already said where (`JAX_COMPILATION_CACHE_DIR`).

    Args:
      folder: made if it is missing. Programs of other kinds of machine stand beside ours.
      wanted: "on", "off", or "auto": on but for CPUs. There, about one program in a thousand ends
        the process in a segmentation fault as it is serialised (jaxlib 0.10.2).
    """
    off = wanted == "off" or (wanted == "auto" and jax.default_backend() == "cpu")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    if off or before[names[0]] is not None:
        yield
        return
    home = folder / _machine()
    hosts.on_first(lambda: _drop_broken(home))
    for name, value in zip(names, (str(home), _MIN_COMPILE_S), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax looks at the folder once a process
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _machine() -> str:
    """A name for what code can run here: jax's own key leaves out the features of the CPU."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
    return f"{platform.machine()}-{platform.node()}"


def _drop_broken(home: Path) -> None:
    """Removes what a killed process left half written; jax would warn of it and never mend it."""
    for entry in home.glob("*-cache"):
        data, whole = entry.read_bytes(), False
        with contextlib.suppress(zlib.error):
            reader = zlib.decompressobj()
            reader.decompress(data)
            whole = reader.eof
        is_zlib = data[:1] == b"\x78"  # with the zstandard package jax writes its frames instead
        if not data or (is_zlib and not whole):
            entry.unlink(missing_ok=True)


@dataclasses.dataclass
class Compilations:
    """What was asked of the compiler.

    Attributes:
      programs: programs asked for.
      from_disk: of these, found compiled on disk.
      seconds: time spent in the compiler, or in reading its results.
    """

    programs: int = 0
    from_disk: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.programs} programs, {self.from_disk} of them from disk, {self.seconds:.1f} s"


@contextlib.contextmanager
def counted() -> Iterator[Compilations]:
    """Counts what this process compiles inside of the block."""
    count = Compilations()

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _ASKED:
            count.programs += 1
            count.seconds += duration_secs

    def on_event(event: str, **_: str | int) -> None:
        if event == _FOUND:
            count.from_disk += 1

    monitoring.register_event_duration_secs_listener(on_duration)
    monitoring.register_event_listener(on_event)
    try:
        yield count
    finally:
        monitoring.unregister_event_duration_listener(on_duration)
        monitoring.unregister_event_listener(on_event)
