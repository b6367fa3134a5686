"""xpk.sh and sky.sh beside programs of ours, and the two files for GKE and SkyPilot.

No test reaches a cluster: the first `xpk`, `sky`, `gcloud` and `kubectl` must not be called; the
second list what they are given, note how they were called, and may fail.
"""

import json
import math
import shlex
import shutil

import pytest
import yaml
from cloud_shells import FOLDER, FORBIDDEN, ROOT, SETTINGS, Shell, dry

from jgrpo import config_io

PLACE = ["--cluster=box", "--zone=us-west4-a", "--project=mine"]
XPK = ("create", "run", "list", "logs", "stop", "delete")
SKY = ("run", "list", "logs", "stop")
LISTING = """#!/usr/bin/env bash
printf '%s %s\\n' "${0##*/}" "${*:1:3}" >>"$CALLED"
[[ ! -e $CLOUD/broken ]] || exit 7
case "$1 $2 $3" in
  *list*|*queue*) if [[ -e $STATES ]]; then cat "$STATES"; fi ;;
esac
"""


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path, FORBIDDEN)
    yield shell
    assert shell.calls() == []


@pytest.fixture
def listing(tmp_path):
    return Shell(tmp_path, LISTING)


@pytest.mark.parametrize("script", ["xpk", "sky"])
def test_help_names_every_action_and_what_costs(shell, script):
    done = shell(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {script}.sh ACTION ")
    for action in XPK if script == "xpk" else SKY:
        assert f"\n  {action} " in done.stdout
    for text in ("COST", "billed until you remove", "default v5litepod-8", "default: cheapest"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("xpk", [], "unknown action ''"),
        ("xpk", ["start"], "unknown action 'start'; see xpk.sh --help"),
        ("xpk", ["--dry-run"], "name an action first"),
        ("xpk", ["create"], "create needs --bucket"),
        ("xpk", ["create", "--bucket", "b", "--reserved"], "--reserved needs the variable"),
        ("xpk", ["create", "--spt"], "unknown argument '--spt'; see xpk.sh --help"),
        ("xpk", ["run"], "no command; write it after --"),
        ("xpk", ["run", "--restarts", "some", "--", "true"], "--restarts must be a number"),
        ("xpk", ["stop", "--", "true"], "stop takes no command"),
        ("sky", ["delete"], "unknown action 'delete'"),
        ("sky", ["run", "--", "true"], "run needs --bucket"),
        ("sky", ["run", "--bucket", "b"], "no command; write it after --"),
        ("sky", ["run", "--bucket", "b", "--type", "x", "--", "true"], "unknown TPU type 'x'"),
        ("sky", ["list", "--zone", "z"], "unknown argument '--zone'"),
    ],
)
def test_a_wrong_argument_is_refused(shell, script, arguments, message):
    done = shell(script, *arguments, **SETTINGS)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(("script", "needed"), [("xpk", "xpk"), ("sky", "sky")])
def test_a_missing_program_is_named(shell, script, needed):
    few = shell.folder / "few"
    few.mkdir()
    for tool in ("bash", "dirname", "cat"):
        (few / tool).symlink_to(shutil.which(tool))
    (few / "gcloud").symlink_to(shutil.which("true"))
    done = shell(script, "list", PATH=str(few), **SETTINGS)
    assert done.returncode == 1
    assert f"{needed} is not installed; see https://" in done.stderr


def test_xpk_makes_a_cluster_with_a_bucket(shell):
    cluster, storages, attach = dry(shell, "xpk create", "--bucket", "runs", "--type", "v6e-8")
    options = ["--tpu-type=v6e-8", "--num-slices=1", "--spot", "--enable-gcsfuse-csi-driver"]
    assert cluster == ["xpk", "cluster", "create", *PLACE, *options]
    assert storages == ["xpk", "storage", "list", *PLACE]
    assert attach[:4] == ["xpk", "storage", "attach", "jgrpo-runs"]
    assert {"--bucket=runs", "--mount-point=/runs", "--auto-mount=true"} <= set(attach)
    reserved = dry(shell, "xpk create", "--bucket", "runs", "--reserved", RESERVATION="ours")
    assert "--reservation=ours" in reserved[0]


def test_xpk_runs_the_last_commit_with_the_preflight_first(shell):
    program = ["--", "python", "train.py", "a b"]
    look, clean, clone, create, after = dry(shell, "xpk run", "--restarts", "3", *program)
    source = str(shell.folder / "jgrpo-box-jgrpo")
    assert look == ["xpk", "workload", "list", *PLACE, "--filter-by-job=jgrpo"]
    assert clean == after == ["rm", "-rf", source]
    assert clone == ["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", source]
    assert create[:3] == ["xpk", "workload", "create"]
    assert {
        *("--workload=jgrpo", "--tpu-type=v5litepod-8", "--base-docker-image=python:3.12"),
        *(f"--script-dir={source}", "--max-restarts=3", "--restart-on-exit-codes=75"),
    } <= set(create)
    assert create[-1] == (
        "--command=pip install --quiet --editable '.[tpu]' && python -m jgrpo.parallel.preflight "
        "--chips 8 --dir /runs && exec python train.py 'a b'"
    )


def test_xpk_lists_logs_stops_and_deletes(shell):
    look = ["xpk", "workload", "list", *PLACE, "--filter-by-job=jgrpo"]
    assert dry(shell, "xpk list") == [look]
    _, logs = dry(shell, "xpk logs", "--follow")
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=jgrpo"
    assert logs == ["kubectl", "logs", selector, "--prefix", "--follow"]
    stop = ["xpk", "workload", "delete", *PLACE, "--workload=jgrpo", "--force"]
    assert dry(shell, "xpk stop") == [look, stop]
    assert dry(shell, "xpk delete")[1] == ["xpk", "cluster", "delete", *PLACE, "--force"]


def test_what_xpk_has_already_is_not_made_again_and_what_it_lacks_not_deleted(listing):
    listing.states.write_text("Jobset Name   Status\njgrpo   Admitted\njgrpo-runs ...\n")
    done = listing("xpk", "run", "--", "true", **SETTINGS)
    assert (done.returncode, listing.calls()) == (0, ["xpk workload list --cluster=box"])
    assert "workload jgrpo exists; nothing was started" in done.stdout
    done = listing("xpk", "create", "--bucket", "b", **SETTINGS)
    assert "a bucket is mounted at /runs already" in done.stdout
    assert not [call for call in listing.calls() if "attach" in call]
    listing.states.write_text("Jobset Name   Status\njgrpo-2   Admitted\n")
    done = listing("xpk", "stop", **SETTINGS)
    assert (done.returncode, done.stdout) == (0, "there is no workload jgrpo in box\n")
    done = listing("xpk", "delete", **SETTINGS)
    assert "there is no cluster box in mine; nothing is billed" in done.stdout
    assert not [call for call in listing.calls() if "delete" in call]
    listing.states.write_text("box\njgrpo Finished\n")
    assert listing("xpk", "stop", **SETTINGS).returncode == 0
    assert listing.calls()[-1] == "xpk workload delete --cluster=box"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("xpk", ["run", "--", "true"], "xpk could not list the workloads of box"),
        ("xpk", ["delete"], "gcloud could not list the clusters of mine"),
        ("sky", ["stop"], "sky could not list the jobs"),
    ],
)
def test_a_listing_that_fails_ends_the_script(listing, script, arguments, message):
    (listing.folder / "broken").touch()
    done = listing(script, *arguments, **SETTINGS)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(listing.calls()) == 1


def test_sky_launches_a_managed_job(shell):
    look, launch = dry(shell, "sky run", "--bucket", "runs", "--", "true", "a b")
    assert look == ["sky", "jobs", "queue", "--skip-finished", "--output", "json"]
    assert launch[:3] == ["sky", "jobs", "launch"]
    assert {"--use-spot", "--gpus=tpu-v5litepod-8", "--name=jgrpo"} <= set(launch)
    given = [launch[i + 1] for i, word in enumerate(launch) if word == "--env"]
    assert given == ["BUCKET=runs", "COMMAND=true 'a b'", "CHIPS=8"]
    assert launch[-1] == str(FOLDER / "sky_train.yaml")
    _, launch = dry(shell, "sky run", "--on-demand", "--bucket", "b", "--", "true")
    assert "--no-use-spot" in launch
    assert dry(shell, "sky logs") == [["sky", "jobs", "logs", "--name=jgrpo", "--no-follow"]]
    assert dry(shell, "sky stop")[1] == ["sky", "jobs", "cancel", "--yes", "--name=jgrpo"]


def test_a_job_of_sky_is_not_started_twice_nor_stopped_twice(listing):
    run = ["run", "--bucket", "b", "--", "true"]
    listing.states.write_text(json.dumps([{"job_id": 1, "job_name": "jgrpo-2"}]))
    assert "no job jgrpo is running" in listing("sky", "stop").stdout
    assert listing("sky", *run).returncode == 0
    assert listing.calls()[-1] == "sky jobs launch --yes"
    listing.states.write_text(json.dumps([{"job_id": 2, "job_name": "jgrpo"}]))
    assert "job jgrpo has not ended; nothing was started" in listing("sky", *run).stdout
    assert listing.calls()[-1] == "sky jobs queue --skip-finished"
    assert listing("sky", "stop").returncode == 0
    assert listing.calls()[-1] == "sky jobs cancel --yes"


def _trains(command):
    """Loads the config that a command trains, with its settings."""
    words = shlex.split(command)
    config, *settings = words[words.index("train.py") + 1 :]
    return config_io.load(ROOT / config, settings)


def test_the_task_of_sky_keeps_the_run_in_its_bucket():
    task = yaml.safe_load((FOLDER / "sky_train.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    (mount,) = task["file_mounts"]
    assert _trains(task["envs"]["COMMAND"]).run.dir.startswith(f"{mount}/")
    assert task["resources"]["accelerators"].endswith(f"-{task['envs']['CHIPS']}")
    assert task["run"].index("preflight") < task["run"].index("$COMMAND")


def test_the_jobset_asks_for_the_chips_it_expects_and_keeps_the_run_in_its_bucket():
    spec = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())["spec"]
    (job,) = spec["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert container["resources"]["limits"]["google.com/tpu"] == chips
    *_, preflight, train = container["args"][0].splitlines()
    assert f"--chips {chips} " in preflight
    (mount,) = container["volumeMounts"]
    assert _trains(train).run.dir.startswith(f"{mount['mountPath']}/")
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert (rule["onExitCodes"]["operator"], 75 in rule["onExitCodes"]["values"]) == ("NotIn", True)
