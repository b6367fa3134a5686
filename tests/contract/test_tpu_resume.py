"""resume.sh against a `gcloud` of ours that is a cloud of one TPU, whose worker is this machine.

`hook` is run at every listing and may take the TPU away; `next` is the state in which a new one
comes; `silent` lets the worker not answer; `denied` locks the bucket.
"""

import shutil
import subprocess

import pytest
from cloud_shells import CLOUD, FORBIDDEN, ROOT, SETTINGS, Shell, dry

FLAGS = ["--run-dir", "runs/x", "--bucket", "gs://mine/x", "--copy-every", "0"]
NEW, LEARNT = "mkdir -p runs/x; echo 7 >runs/x/new; mv runs/x/new runs/x/step", "runs/x/step"
TAKEN_AWAY = """
echo SUSPENDED >"$CLOUD/state"
rm -rf "$HOME/jgrpo" "$HOME/jgrpo-logs"
tmux kill-server
"""

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


@pytest.fixture
def cloud(tmp_path):
    cloud = Shell(tmp_path, CLOUD)
    (tmp_path / "next").write_text("ACTIVE\n")
    source = tmp_path / "source"
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "--quiet", str(source)], check=True)
    commit = [*git, "commit", "--quiet", "--allow-empty", "--message", "one"]
    subprocess.run(commit, check=True, env=cloud.environment)
    uv = cloud.home / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text("#!/bin/sh\nmkdir -p .venv/bin && cp /bin/true .venv/bin/python\n")
    uv.chmod(0o755)
    yield cloud
    subprocess.run(["tmux", "kill-server"], env=cloud.environment, capture_output=True)


def resume(cloud, command, *flags):
    where = ["--clone", str(cloud.folder / "source"), "--no-preflight"]
    program = ["--", "sh", "-c", command]
    return cloud("resume", *FLAGS, *where, *flags, *program, POLL_S="0.1", **SETTINGS)


def asked(cloud, verb):
    return cloud.calls().count(f"compute tpus queued-resources {verb}")


def log(cloud):
    return (cloud.home / "jgrpo-logs" / "run.log").read_text()


def test_a_run_goes_on_from_its_copy_after_a_preemption(cloud):
    """Taken away once the bucket has a copy; the second start finds the folder and ends."""
    (cloud.folder / "hook").write_text(
        f'if [ -e "$CLOUD/mine/x/step" ] && mkdir "$CLOUD/once" 2>/dev/null; then {TAKEN_AWAY} fi'
    )
    command = f"if [ -e {LEARNT} ]; then cat {LEARNT}; else {NEW}; exec sleep 600; fi"
    done = resume(cloud, command, "--delete")
    assert done.returncode == 0, done.stderr
    assert "box is SUSPENDED (expired or taken away); retry 1 of 10" in done.stdout
    assert log(cloud).splitlines()[-2:] == ["7", "== exit status 0"]
    assert (asked(cloud, "create"), asked(cloud, "delete")) == (2, 2)
    assert not (cloud.folder / "state").exists()


def test_called_again_it_goes_on_with_what_there_is(cloud):
    """What has succeeded is not started again; what has failed is."""
    (cloud.folder / "state").write_text("ACTIVE\n")
    for _ in range(2):
        done = resume(cloud, "echo here")
        assert done.returncode == 0, done.stderr
        assert "box is billed until delete.sh" in done.stdout
    assert log(cloud).count("\nhere\n") == 1
    for i in range(2):
        done = resume(cloud, "exit 9")
        assert done.returncode == 4
        assert "the command has failed: exit status 9; box is billed until" in done.stderr
        assert log(cloud).count("== exit status 9\n") == i + 1
    assert (asked(cloud, "create"), asked(cloud, "delete")) == (0, 0)


def test_an_interrupted_run_is_started_again(cloud):
    (cloud.folder / "state").write_text("ACTIVE\n")
    done = resume(cloud, f"[ -e {LEARNT} ] || {{ {NEW}; exit 75; }}")
    assert done.returncode == 0, done.stderr
    assert "the command was interrupted (exit status 75); retry 1 of 10" in done.stdout
    assert (cloud.folder / "mine" / "x" / "step").read_text() == "7\n"


def test_it_gives_up_after_so_many_retries_and_leaves_nothing(cloud):
    (cloud.folder / "next").write_text("FAILED\n")
    done = resume(cloud, "true", "--retries", "2")
    assert done.returncode == 3
    assert "box is FAILED (expired or taken away), after 2 retries" in done.stderr
    assert (asked(cloud, "create"), asked(cloud, "delete")) == (3, 3)
    assert not (cloud.folder / "state").exists()


def test_a_node_that_is_gone_before_its_request_is_replaced(cloud):
    (cloud.folder / "state").write_text("ACTIVE\n")
    (cloud.folder / "node").write_text("PREEMPTED\n")
    (cloud.folder / "silent").touch()
    (cloud.folder / "hook").write_text('[ -e "$CLOUD/state" ] || rm -f "$CLOUD/silent"')
    done = resume(cloud, "true")
    assert done.returncode == 0, done.stderr
    assert "box is PREEMPTED; retry 1 of 10" in done.stdout
    assert asked(cloud, "create") == 1


def test_a_worker_that_never_answers_is_left_after_ten_times(cloud):
    (cloud.folder / "state").write_text("ACTIVE\n")
    (cloud.folder / "node").write_text("READY\n")
    (cloud.folder / "silent").touch()
    done = resume(cloud, "true")
    assert done.returncode == 1
    assert done.stderr.count("worker 0 does not answer; looking again") == 9
    assert "failure 10 in a row. If box is ACTIVE it is billed" in done.stderr


def test_a_copy_that_cannot_be_read_is_not_taken_for_none(cloud):
    """Else the run would begin anew, and its copy be overwritten."""
    (cloud.folder / "state").write_text("ACTIVE\n")
    (cloud.folder / "denied").touch()
    done = resume(cloud, "true")
    assert done.returncode == 1
    assert "ERROR: you may not read it" in done.stderr
    assert not (cloud.home / "jgrpo-logs").exists()


def test_a_tpu_that_somebody_deletes_is_not_asked_for_again(cloud):
    (cloud.folder / "state").write_text("ACTIVE\n")
    (cloud.folder / "hook").write_text('[ ! -e "$HOME/jgrpo-logs" ] || rm -f "$CLOUD/state"')
    done = resume(cloud, "exec sleep 600")
    assert done.returncode == 1
    assert "somebody else has deleted box; it is not asked for again" in done.stderr
    assert asked(cloud, "create") == 0


def test_a_dry_run_shows_one_preemption(tmp_path):
    shell = Shell(tmp_path, FORBIDDEN)
    flags = ["--reserved", "--type", "v6e-8", "--extras", "tpu,math", "--", "true"]
    lines = dry(shell, "resume", *FLAGS, *flags)
    pinned, _, delete, _, create, bundle, *rest = lines
    assert pinned == ["git", "-C", str(ROOT), "update-ref", "refs/jgrpo/box", "HEAD"]
    assert "--quiet" in delete
    assert {"--reserved", "--accelerator-type=v6e-8"} <= set(create)
    assert bundle[-1] == "refs/jgrpo/box"
    install, restore, run, look, copy = (words[-1] for words in rest[2:])
    assert "git fetch --quiet --force ~/jgrpo.bundle refs/jgrpo/box" in install
    assert "--editable '.[tpu,math]'" in install
    assert "gcloud storage rsync --recursive gs://mine/x runs/x.part" in restore
    assert "-m jgrpo.parallel.preflight --chips 8" in run
    assert "tmux has-session" in look
    options = "--recursive --delete-unmatched-destination-objects"
    assert f"gcloud storage rsync {options} runs/x gs://mine/x" in copy
    assert [words[-2] for words in rest[2:]] == [f"--worker={w}" for w in ("all",) * 3 + (0,) * 2]
    assert shell.calls() == []
