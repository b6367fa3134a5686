"""On GPUs all is arithmetic, so that nothing is compiled here."""

from pathlib import Path

import pytest

from jgrpo.config_io import load
from jgrpo.models.load import architecture
from jgrpo.planning import search
from jgrpo.planning.chips import topology
from jgrpo.planning.look import Look, describe, look, to_json

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs/grpo_gsm8k_qwen3_0.6b_gpu.yaml"


def looked(*words: str, on: str = "a100-40:1") -> Look:
    cfg = load(RECIPE, words)
    return look(cfg, architecture(cfg.model.path), topology(on))


def test_recipe_for_one_gpu_of_80_gb_fits_it():
    assert looked(on="a100-80:1").fits


def test_microbatch_that_is_too_large_is_halved_until_it_fits():
    words = ("data.num_prompts_per_step=16", "model.attention=xla")  # it keeps its scores
    large = looked(*words, "optim.microbatch_completions=128")
    assert not large.fits
    found = search.nearest(large, say=lambda line: None)
    assert found is not None
    assert found.look.fits
    assert set(found.changes) == {"optim.microbatch_completions"}
    twice = 2 * found.changes["optim.microbatch_completions"]
    assert not looked(*words, f"optim.microbatch_completions={twice}").fits


def test_caches_that_are_too_large_get_fewer_slots():
    words = ("data.num_prompts_per_step=256", "optim.microbatch_completions=8")
    large = looked(*words)
    assert [p.name for p in large.programs if p.total > large.topology.chip.hbm] == ["advance"]
    found = search.nearest(large, say=lambda line: None)
    assert found is not None
    assert found.look.fits
    assert set(found.changes) == {"rollout.slots"}


def test_nothing_is_proposed_where_nothing_fits():
    large = looked("model.path=Qwen/Qwen3-8B")
    assert search.nearest(large, say=lambda line: None) is None


def test_search_finds_the_shortest_step_that_fits():
    here = looked(on="h100:8")
    found = search.best(here, say=lambda line: None)
    assert found is not None
    assert found.look.fits
    assert found.look.step is not None
    assert here.step is not None
    assert found.look.step.seconds < here.step.seconds
    # Weights that lie whole on each GPU need no gathering.
    assert (found.look.mesh["fsdp"], found.look.mesh["expert"]) == (1, 1)


def test_search_splits_heads_where_weights_and_experts_too_large_for_a_gpu_are():
    """Weights, moments and gradients of 30 billion numbers, on eight GPUs: adapters fit."""
    here = looked("model.path=Qwen/Qwen3-30B-A3B", "model.lora.rank=16", on="h200:8")
    found = search.best(here, say=lambda line: None)
    assert found is not None
    assert found.look.mesh["fsdp"] * found.look.mesh["expert"] > 1
    assert found.look.mesh["tensor"] == 1  # experts are not split so
    assert found.look.programs[0].hbm["frozen"] > 0


def test_search_needs_speeds():
    cfg = load(RECIPE)
    here = look(cfg, architecture(cfg.model.path), topology("cpu:1"), compiles=False)
    assert here.step is None
    with pytest.raises(ValueError, match="known speed, not cpu:1"):
        search.best(here, say=lambda line: None)


def test_json_and_text_say_the_same():
    here = looked(on="a100-80:1")
    told, text = to_json(here), describe(here)
    assert told["fits"]
    assert not told["compiled"]
    assert [program["name"] for program in told["programs"]] == ["advance", "update"]
    for program in told["programs"]:
        assert sum(program["hbm"].values()) == program["hbm_total"] <= told["hbm_of_chip"]
        assert f"{program['flops']:.2e} a chip" in text
        assert f"by {program['estimate']['bottleneck']}" in text
    assert f"{told['step']['tokens_per_s']:,.0f} completion tokens a second" in text


def test_changed_sets_values_by_dotted_key():
    cfg = search.changed(load(RECIPE), {"mesh.fsdp": 4, "model.remat": "dots"})
    assert (cfg.mesh.fsdp, cfg.model.remat) == (4, "dots")
    assert cfg.optim == load(RECIPE).optim
