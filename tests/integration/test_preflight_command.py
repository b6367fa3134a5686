"""The preflight as it is started: alone with eight devices, and in two processes that join."""

import json
import os
import socket
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Nothing here depends on how fast or how busy this machine is.
LENIENT = ["--clock-s", "60", "--disk-gib", "0"]


def start(*flags, devices, **environment):
    environment |= {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": ROOT,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "jgrpo.parallel.preflight", *LENIENT, *flags],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, err = process.communicate(timeout=150)
    return process.returncode, out, err


def start_two(devices, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JGRPO_COORDINATOR": address, "JGRPO_NUM_PROCESSES": "2"}
    return [
        start(*flags, devices=number, JGRPO_PROCESS_ID=str(process), **joined)
        for process, number in enumerate(devices)
    ]


@pytest.mark.slow
def test_eight_devices_of_one_host_pass(tmp_path):
    code, out, err = end(start("--chips", "8", "--json", "--dir", str(tmp_path / "new"), devices=8))
    assert code == 0, out + err
    report = json.loads(out)
    assert (report["ok"], report["failures"], report["clock_offset_s"]) == (True, [], [0.0])
    (host,) = report["hosts"]
    assert host["name"] == f"0 {socket.gethostname()}"
    assert host["chips"] == 8
    assert {name: len(values) for name, values in host["rates"].items()} == {
        "memory": 8,
        "matmul": 8,
        "all-reduce": 1,
    }
    assert set(host["wrong"].values()) == {0}
    assert host["disk_gib"] > 0
    assert set(host["versions"]) == {"python", "jax", "jaxlib", "libtpu", "jgrpo"}


def test_two_processes_join_and_the_first_prints_one_table():
    (code, out, err), (other_code, other_out, other_err) = map(
        end, start_two([2, 2], "--chips", "4")
    )
    assert (code, other_code) == (0, 0), err + other_err
    assert "4 x cpu on 2 host(s)" in out
    rows = [line for line in out.splitlines() if socket.gethostname() in line]
    assert [row.split()[1] for row in rows] == ["0", "1"]
    assert all(line.startswith("[Gloo]") for line in other_out.splitlines())  # not ours


def test_the_process_that_lacks_a_device_is_named_and_both_fail():
    """They can still tell each other, although they have unequal numbers of devices."""
    (code, out, err), (other_code, _, other_err) = map(end, start_two([2, 1], "--chips", "4"))
    assert (code, other_code) == (1, 1), err + other_err
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert failed == [
        f"FAILED host 1 {socket.gethostname()}: chips: 1 found, expected 2 of 4 on 2 host(s)"
    ]


def test_a_host_that_does_not_come_ends_the_others():
    alone, late = start_two([1, 1], "--deadline", "4")
    late.kill()
    late.communicate()
    code, out, err = end(alone)
    assert (code, out) == (1, "")
    assert f"{socket.gethostname()}: no end of joining the other hosts after 4 s" in err
