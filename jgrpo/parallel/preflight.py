"""`python -m jgrpo.parallel.preflight`: what every host can do, in one table, before a run costs.

The same command is started on all hosts at once. They join, measure, tell each other what they
found, and judge alike: the first prints, and all of them exit with 1 if any check fails on any
host. A host that hangs or does not come ends the others after `--deadline` seconds.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

import jgrpo
from jgrpo.parallel.distributed import initialize
from jgrpo.parallel.measuring import Rate, gather, matmul_rate, memory_rate, reduce_rate, sizes

_CLOCK_ROUNDS = 5
_ROOM = 16 * 2**10  # bytes of a host's facts
_SAME_MEMORY = 0.95  # ASSUMED: of the largest memory; the runtime of each chip keeps a little
_VERSIONS = ("jax", "jaxlib", "libtpu")
_RATES = {"memory": "memory GB/s", "matmul": "matmul TFLOP/s", "all-reduce": "all-reduce GB/s"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a host must reach. The defaults are ASSUMED.

    Attributes:
      chips: over all hosts, in equal parts; None: any number, the same on all.
      slowest: part of the median over all chips that each must reach in speed.
      clock_s: seconds that a clock may be off the median of all.
      disk_gib: free GiB; a checkpoint of Qwen3-0.6B with Adam in float32 has 7.
    """

    chips: int | None = None
    slowest: float = 0.7
    clock_s: float = 1.0
    disk_gib: float = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """What one host has found.

    Attributes:
      name: number of the process, and what the host is called.
      kind: of its chips, such as `TPU v5 lite`.
      chips: how many.
      hbm_gib: the smallest memory of a chip; None where the platform does not tell.
      rates: for each of memory (GB/s), matmul (TFLOP/s) and all-reduce (GB/s), one value a device;
        all-reduce has one, or none if there is but one device.
      wrong: elements of the results that were not as they must be, by the same names.
      stamps: times at which it left the same barriers as all others, in seconds.
      disk_gib: free where the run folder is to be.
      versions: of python, jax, jaxlib, libtpu and jgrpo, with a digest of its source.
    """

    name: str
    kind: str
    chips: int
    hbm_gib: float | None
    rates: dict[str, list[float]]
    wrong: dict[str, int]
    stamps: list[float]
    disk_gib: float
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A check that one host has failed.

    Attributes:
      host: its name.
      check: column of the table.
      message: what was found, and what is allowed.
    """

    host: str
    check: str
    message: str


def clock_offsets(hosts: Sequence[Host]) -> list[float]:
    """Seconds by which each clock is ahead of the median clock: the median over the barriers.

    As exact as hosts leave a barrier together, some milliseconds.
    """
    middles = [statistics.median(stamps) for stamps in zip(*(h.stamps for h in hosts), strict=True)]
    return [
        statistics.median(t - middle for t, middle in zip(host.stamps, middles, strict=True))
        for host in hosts
    ]


def judge(hosts: Sequence[Host], limits: Limits) -> list[Failure]:
    """Every check that a host has failed, host by host. Pure."""
    failures = []
    for host, offset in zip(hosts, clock_offsets(hosts), strict=True):
        for check, message in [
            *_judge_chips(host, hosts, limits),
            *_judge_rates(host, hosts, limits),
            *((name, f"{n:,} wrong elements") for name, n in host.wrong.items() if n),
            *_judge_versions(host, hosts),
        ]:
            failures.append(Failure(host=host.name, check=check, message=message))
        if abs(offset) > limits.clock_s:
            message = f"{offset:+.3f} s off the median, at most {limits.clock_s:g}"
            failures.append(Failure(host=host.name, check="clock", message=message))
        if host.disk_gib < limits.disk_gib:
            message = f"{host.disk_gib:.1f} GiB free, at least {limits.disk_gib:g}"
            failures.append(Failure(host=host.name, check="disk", message=message))
    return failures


def _judge_chips(host: Host, hosts: Sequence[Host], limits: Limits) -> Iterator[tuple[str, str]]:
    common = _most_common([other.chips for other in hosts])
    expected = common if limits.chips is None else limits.chips / len(hosts)
    if host.chips != expected:
        of = (
            "as elsewhere" if limits.chips is None else f"of {limits.chips} on {len(hosts)} host(s)"
        )
        yield "chips", f"{host.chips} found, expected {expected:g} {of}"
    kind = _most_common([other.kind for other in hosts])
    if host.kind != kind:
        yield "chips", f"{host.kind!r}, elsewhere {kind!r}"
    largest = max((other.hbm_gib or 0.0 for other in hosts), default=0.0)
    if host.hbm_gib is not None and host.hbm_gib < _SAME_MEMORY * largest:
        yield "HBM", f"{host.hbm_gib:.1f} GiB, elsewhere {largest:.1f}"


def _judge_rates(host: Host, hosts: Sequence[Host], limits: Limits) -> Iterator[tuple[str, str]]:
    if host.kind == "cpu":  # simulated devices share the cores: their speeds mean nothing
        return
    for name, values in host.rates.items():
        everywhere = [value for other in hosts for value in other.rates[name]]
        for i, value in enumerate(values):
            middle = statistics.median(everywhere)
            if value < limits.slowest * middle:
                which = f"chip {i}: " if len(values) > 1 else ""
                yield (
                    name,
                    f"{which}{value:.4g}, median {middle:.4g}, at least {limits.slowest:g} of it",
                )


def _judge_versions(host: Host, hosts: Sequence[Host]) -> Iterator[tuple[str, str]]:
    for name, version in host.versions.items():
        common = _most_common([other.versions[name] for other in hosts])
        if version != common:
            yield name, f"{version}, elsewhere {common}"


def _most_common(values: Sequence[Any]) -> Any:
    """The most common value; of equally common ones the first."""
    return Counter(values).most_common(1)[0][0]


class _Watch:
    """Ends the process if the hosts have not finished in time, saying what they waited for."""

    def __init__(self, deadline_s: float) -> None:
        self._stage, self._deadline_s = "", deadline_s
        self._timer = threading.Timer(deadline_s, self._end)
        self._timer.daemon = True

    @contextlib.contextmanager
    def running(self) -> Iterator["_Watch"]:
        self._timer.start()
        try:
            yield self
        finally:
            self._timer.cancel()

    def stage(self, name: str) -> None:
        self._stage = name

    def _end(self) -> None:
        _abandon(
            f"no end of {self._stage} after {self._deadline_s:g} s: a host hangs or is missing"
        )


def _abandon(message: str) -> None:
    """Says why and ends the process at once: the usual exit would wait for the other hosts."""
    sys.stderr.write(f"preflight: {socket.gethostname()}: {message}\n")
    sys.stderr.flush()
    os._exit(1)


def measure(folder: Path, watch: _Watch) -> list[Host]:
    """Measures this host together with all others; returns what each has found.

    Args:
      folder: the run folder to be; it need not exist.
      watch: told what is going on.
    """
    watch.stage("the first exchange")
    gather(b"here", _ROOM)
    local = jax.local_devices()
    size = sizes(local[0].platform)
    watch.stage("the memory test")
    memory = [memory_rate(device, size) for device in local]
    watch.stage("the multiplication test")
    matmul = [matmul_rate(device, size) for device in local]
    watch.stage("the all-reduce")
    reduce = reduce_rate(jax.devices(), size)
    watch.stage("the comparison of clocks")
    stamps = []
    for _ in range(_CLOCK_ROUNDS):
        gather(b"now", _ROOM)
        stamps.append(time.time())
    found: dict[str, list[Rate]] = {"memory": memory, "matmul": matmul, "all-reduce": [reduce]}
    host = Host(
        name=f"{jax.process_index()} {socket.gethostname()}",
        kind=local[0].device_kind,
        chips=_chips(local),
        hbm_gib=_hbm_gib(local),
        rates={
            name: [rate.value for rate in rates if rate.value > 0] for name, rates in found.items()
        },
        wrong={name: sum(rate.wrong for rate in rates) for name, rates in found.items()},
        stamps=stamps,
        disk_gib=_free_gib(folder),
        versions=_versions(),
    )
    watch.stage("the last exchange")
    said = gather(json.dumps(dataclasses.asdict(host)).encode(), _ROOM)
    return [Host(**json.loads(text)) for text in said]


def _chips(devices: Sequence[Any]) -> int:
    """Chips under the devices: of some TPUs, each core is a device."""
    return len({tuple(d.coords) if d.platform == "tpu" else d.id for d in devices})


def _hbm_gib(devices: Sequence[Any]) -> float | None:
    stats = [device.memory_stats() or {} for device in devices]
    limits = [found["bytes_limit"] / 2**30 for found in stats if "bytes_limit" in found]
    return min(limits, default=None)


def _free_gib(folder: Path) -> float:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free / 2**30


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    root = Path(jgrpo.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {**found, "jgrpo": f"{jgrpo.__version__}+{digest.hexdigest()[:8]}"}


def _table(hosts: Sequence[Host], failures: Sequence[Failure]) -> Table:
    """One row a host; what has failed is marked with an exclamation mark."""
    failed = {(failure.host, failure.check) for failure in failures}
    table = Table(title=f"{sum(h.chips for h in hosts)} x {hosts[0].kind} on {len(hosts)} host(s)")
    headers = {
        "chips": "chips",
        "HBM": "HBM GiB",
        **_RATES,
        "clock": "clock ms",
        "disk": "disk GiB",
    }
    headers |= {name: name for name in hosts[0].versions}
    table.add_column("host", no_wrap=True)
    for header in headers.values():
        table.add_column(header, justify="right")
    for host, offset in zip(hosts, clock_offsets(hosts), strict=True):
        cells = {
            "chips": str(host.chips),
            "HBM": "-" if host.hbm_gib is None else f"{host.hbm_gib:.1f}",
            **{
                name: f"{min(values):.4g}" if values else "-" for name, values in host.rates.items()
            },
            "clock": f"{1000 * offset:+.0f}",
            "disk": f"{host.disk_gib:.1f}",
            **host.versions,
        }
        marks = ("!" if (host.name, name) in failed else "" for name in headers)
        table.add_row(
            host.name, *(mark + cells[name] for name, mark in zip(headers, marks, strict=True))
        )
    return table


def _report(hosts: Sequence[Host], failures: Sequence[Failure], as_json: bool) -> None:
    if as_json:
        report = {
            "ok": not failures,
            "hosts": [dataclasses.asdict(host) for host in hosts],
            "clock_offset_s": clock_offsets(hosts),
            "failures": [dataclasses.asdict(failure) for failure in failures],
        }
        print(json.dumps(report))
        return
    Console(width=max(Console().width, 180)).print(_table(hosts, failures))
    for failure in failures:
        print(f"FAILED host {failure.host}: {failure.check}: {failure.message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks; returns the exit code, the same on all hosts: 1 if any has failed."""
    default = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m jgrpo.parallel.preflight",
        description="Measures all hosts before a run and prints one table; start it on all at "
        "once. Exits with 1 and names the host if a check fails.",
    )
    parser.add_argument("--chips", type=int, help="chips over all hosts (default: any, equal)")
    parser.add_argument("--dir", type=Path, default=Path(), help="run.dir to be (default: here)")
    for name, default_value, text in (
        ("--slowest", default.slowest, "part of the median speed that each chip must reach"),
        ("--clock-s", default.clock_s, "seconds that a clock may be off"),
        ("--disk-gib", default.disk_gib, "GiB that must be free in --dir"),
        ("--deadline", 300.0, "seconds until a host that hangs or is missing ends the rest"),
    ):
        help_text = f"{text} (default: {default_value:g})"
        parser.add_argument(name, type=float, default=default_value, help=help_text)
    parser.add_argument("--json", action="store_true", help="print all findings in one line")
    args = parser.parse_args(argv)
    limits = Limits(
        chips=args.chips, slowest=args.slowest, clock_s=args.clock_s, disk_gib=args.disk_gib
    )
    with _Watch(args.deadline).running() as watch:
        watch.stage("joining the other hosts")
        try:
            initialize(timeout_s=int(args.deadline) + 60)  # the watch says more
            hosts = measure(args.dir, watch)
        except (RuntimeError, ValueError) as error:
            _abandon(str(error))
            raise  # unreachable; for the type checker
    failures = judge(hosts, limits)
    if jax.process_index() == 0:
        _report(hosts, failures, args.json)
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
