"""Kills a small run again and again and compares what is left with a run left alone.

    .venv/bin/python tests/killed_runs.py --kills 200

Every kill is a SIGKILL at a random moment of a phase; the phases take turns. The processes are
forked from one that has imported everything, and read compiled programs from a cache, so that most
of their life is spent in the run itself.
"""

import argparse
import collections
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from one_device import ONE_DEVICE

ROOT = Path(__file__).parents[1]
STEPS = 6
OVERRIDES = (
    "data.num_prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=24",
    "eval.num_prompts=8",
    "eval.every=2",
    "checkpoint.every=1",
    f"run.steps={STEPS}",
)
PHASES = {
    "start": {"assemble", "claim", "init", "restore_latest"},
    "evaluation": {"_evaluate"},
    "rollout": {"generate"},
    "rewards": {"score_rollouts", "_round"},
    "learner": {"learn"},
    "records": {"add"},
    "save": {"_finish", "save"},
}
"""The functions of jgrpo that tell the phase; the first phase that has one of them counts."""

_DEADLINE_S = 180.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """A SIGKILL and where it hit; or the process had crashed by itself, which must cost no more."""

    wanted: str
    hit: str
    crashed: bool


def run_alone(folder: Path, cache: Path) -> None:
    """Runs to the end, undisturbed, and fills the cache of compiled programs."""
    process = _start(folder, cache, None, fills_cache=True)
    process.join(_DEADLINE_S)
    assert process.exitcode == 0, f"exit code {process.exitcode}"


def kill_often(
    workplace: Path, cache: Path, kills: int, seed: int
) -> tuple[list[Kill], list[Path]]:
    """Kills runs at random moments, each continued until it has ended.

    Args:
      workplace: where the run folders are made.
      cache: compiled programs.
      kills: how many.
      seed: of the moments.

    Returns:
      The kills, and the folders of the finished runs.
    """
    draws = random.Random(seed)
    done: list[Kill] = []
    folders = [workplace / "run_0"]
    while len(done) < kills:
        wanted = list(PHASES)[len(done) % len(PHASES)]
        kill = _kill_once(folders[-1], cache, wanted, draws)
        if kill is not None:
            done.append(kill)
        else:
            folders.append(workplace / f"run_{len(folders)}")
    run_alone(folders[-1], cache)
    return done, folders


def left_behind(folder: Path) -> dict[str, object]:
    """What two equal runs have in common: weights, optimizer, metrics, samples, summary."""
    import orbax.checkpoint as ocp

    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    state = ocp.PyTreeCheckpointer().restore(newest)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": newest.name,
        "state": {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in state.items()},
        "metrics": [{k: v for k, v in row.items() if not _is_clock(k)} for row in rows],
        "samples": {path.name: path.read_bytes() for path in (folder / "samples").iterdir()},
        "summary": (folder / "summary.json").read_text(),
    }


def _is_clock(name: str) -> bool:
    return name.endswith("_s") or "tok_s" in name


def _kill_once(folder: Path, cache: Path, wanted: str, draws: random.Random) -> Kill | None:
    """Starts the run and kills it in a phase; None if it has ended before."""
    # Shared memory outlives the process, so it tells where the kill has hit.
    phase = multiprocessing.get_context("forkserver").Array("c", 32)
    process = _start(folder, cache, phase, fills_cache=False)
    deadline = time.monotonic() + _DEADLINE_S
    for _ in range(1 if wanted == "start" else draws.randint(1, 3)):  # visits to the phase
        for is_there in (False, True):
            while (phase.value.decode() == wanted) != is_there and process.is_alive():
                assert time.monotonic() < deadline, f"never came to {wanted}"
                time.sleep(0.001)
    time.sleep(draws.choice([0.0, 0.003, 0.03, 0.3]) * draws.random())
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode in (-signal.SIGKILL, -signal.SIGSEGV), f"exit code {process.exitcode}"
    crashed = process.exitcode == -signal.SIGSEGV  # XLA's CPU backend does so, rarely
    return Kill(wanted=wanted, hit=phase.value.decode(), crashed=crashed)


def _start(folder: Path, cache: Path, phase: object, *, fills_cache: bool):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jgrpo.run", "killed_runs"])
    process = context.Process(target=_train, args=(folder, cache, phase, fills_cache))
    process.start()
    return process


def _train(folder: Path, cache: Path, phase: object, fills_cache: bool) -> None:
    os.environ.update(ONE_DEVICE)
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A killed process must not leave half an entry behind.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if fills_cache else 1e9)
    if phase is not None:
        threading.Thread(target=_watch, args=(phase,), daemon=True).start()
    with open(os.devnull, "w") as nowhere:
        sys.stderr = nowhere
        from jgrpo import config_io
        from jgrpo.run import train

        overrides = [*OVERRIDES, f"run.dir={folder}"]
        train(config_io.load(ROOT / "configs" / "quickstart.yaml", overrides))


def _watch(phase: object) -> None:
    """Keeps the phase in shared memory up to date, from the stacks of all threads."""
    while True:
        names = set()
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame.f_globals.get("__name__", "").startswith("jgrpo."):
                    names.add(frame.f_code.co_name)
                frame = frame.f_back
        hit = [name for name, functions in reversed(PHASES.items()) if functions & names]
        phase.value = (hit[0] if hit else "between").encode()
        time.sleep(0.001)


def main() -> None:
    """Kills as often as told and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    workplace = Path(tempfile.mkdtemp(prefix="killed_runs_"))
    run_alone(workplace / "alone", workplace / "cache")
    expected = left_behind(workplace / "alone")
    kills, folders = kill_often(workplace, workplace / "cache", args.kills, args.seed)
    different = [str(f) for f in folders if left_behind(f) != expected]
    hits = collections.Counter(kill.hit for kill in kills)
    print(
        f"{len(kills)} kills, {len(folders)} runs, {len(different)} of them different: {different}"
    )
    print("of them crashed before their kill:", sum(kill.crashed for kill in kills))
    print("kills by phase:", ", ".join(f"{name} {count}" for name, count in sorted(hits.items())))
    if not different:
        shutil.rmtree(workplace)
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
