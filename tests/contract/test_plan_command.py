"""`jgrpo plan`, as a user calls it: in a process of its own, without the checks of types.

(Arguments that are shapes and not arrays fail those.)
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jgrpo.assembly import assemble
from jgrpo.config_io import load
from jgrpo.learning import learn
from jgrpo.planning.programs import LEARNING

ROOT = Path(__file__).parents[2]
QUICKSTART = "configs/quickstart.yaml"
# One width of the rings, so that one decode loop is compiled.
SMALL = ("rollout.chunk_tokens=56", "data.num_prompts_per_step=16", "mesh.fsdp=2")
MESH = {"replica": 2, "fsdp": 2, "expert": 1, "tensor": 1}
KINDS = {"parameters", "optimizer", "gradients", "activations", "temporaries"}


def plan(*words: str) -> tuple[int, dict]:
    """Exit code, and what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "jgrpo", "plan", *words, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


needs_libtpu = pytest.mark.skipif(
    "TPU_LIBRARY_PATH" not in os.environ, reason="needs libtpu: see .ci/run"
)


def test_run_that_is_too_large_for_a_gpu_ends_with_1_and_its_proposal_with_0():
    """By arithmetic, in no time."""
    recipe, on = "configs/grpo_gsm8k_qwen3_0.6b_gpu.yaml", ("--topology", "a100-40:1")
    code, told = plan(recipe, *on)
    assert (code, told["fits"], told["compiled"]) == (1, False, False)
    better = [f"{key}={value}" for key, value in told["proposal"]["changes"].items()]
    code, told = plan(recipe, *better, *on)
    assert (code, told["fits"], told["proposal"]) == (0, True, None)


@needs_libtpu
@pytest.mark.slow
def test_run_that_is_too_large_for_a_v5e_is_refused_with_one_that_fits():
    """4,096 completions a chip at once, without remat; the proposal is then planned by itself."""
    words = (*SMALL, "data.num_prompts_per_step=2048", "rollout.slots=16")
    large = (*words, "rollout.max_completion_tokens=448", "rollout.chunk_tokens=448")
    code, told = plan(QUICKSTART, *large, "--topology", "v5e:2x2")
    assert code == 1
    assert not told["fits"]
    assert [p["name"] for p in told["programs"] if not p["fits"]] == ["update"]
    changes = told["proposal"]["changes"]
    assert told["proposal"]["look"]["fits"]
    better = [f"{key}={value}" for key, value in changes.items()]
    code, told = plan(QUICKSTART, *large, *better, "--topology", "v5e:2x2")
    assert code == 0
    assert told["fits"]
    assert told["proposal"] is None


@needs_libtpu
def test_json_has_every_program_with_memory_exchanges_and_estimate():
    code, told = plan(QUICKSTART, *SMALL, "--topology", "v5e:2x2")
    assert code == 0
    assert (told["chips"], told["mesh"]) == (4, MESH)
    programs = {program["name"]: program for program in told["programs"]}
    assert set(programs) == {"_gathered", "start", "advance", "update"}
    for program in programs.values():
        assert sum(program["hbm"].values()) == program["hbm_total"] < told["hbm_of_chip"]
        assert program["name"] == "_gathered" or program["estimate"]["seconds"] > 0
    update = programs["update"]
    assert set(update["hbm"]) == KINDS
    over, of_gathering, of_decoding = (
        {(c["kind"], *c["axes"]) for c in programs[name]["collectives"]}
        for name in ("update", "_gathered", "advance")
    )
    assert ("all-gather", "fsdp") in over & of_gathering
    # What was drawn, and whether any slot goes on: no weights.
    assert {tuple(axes) for _, *axes in of_decoding} == {("replica", "fsdp")}
    assert any(kind == "all-reduce" and "replica" in axes for kind, *axes in over)
    assert told["step"]["tokens_per_s"] > 0


def test_adapters_and_split_heads_are_planned():
    words = (*SMALL[:2], "mesh.tensor=2", "model.lora.rank=4")
    code, told = plan(QUICKSTART, *words, "--topology", "cpu:4")
    assert code == 0
    assert told["mesh"] == {"replica": 2, "fsdp": 1, "expert": 1, "tensor": 2}
    update = next(program for program in told["programs"] if program["name"] == "update")
    assert update["hbm"]["frozen"] > 10 * update["hbm"]["parameters"]
    over = {(c["kind"], *c["axes"]) for c in update["collectives"]}
    assert over == {("all-reduce", "tensor"), ("all-reduce", "replica")}


@pytest.mark.slow
def test_memory_of_the_learner_is_what_xla_reports_of_the_program_that_runs(tmp_path):
    """On eight simulated devices; what runs is the update of a real step of the quickstart."""
    code, told = plan(QUICKSTART, "--topology", "cpu:8")
    assert code == 0
    (update,) = (program for program in told["programs"] if program["name"] in LEARNING)
    before = set(_named("jit__update"))
    with contextlib.closing(assemble(load(ROOT / QUICKSTART, [f"run.dir={tmp_path}"]))) as run:
        state = run.initial_state()
        collected = run.collector.collect(state.params, 0, 0, state.strategy)
        learn(run, state, 0, collected)
        (ran,) = (x for x in _named("jit__update") if x not in before)
        stats = ran.get_compiled_memory_stats()
    used = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )
    assert update["hbm_total"] == pytest.approx(used, rel=0.15)


def _named(name: str) -> list:
    """Programs of that name that the CPU has ready."""
    ready = jax.devices()[0].client.live_executables()
    return [x for x in ready if x.hlo_modules()[0].name == name]
