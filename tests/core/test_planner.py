import dataclasses
from pathlib import Path

import pytest

from jgrpo.config import Config
from jgrpo.config_io import load
from jgrpo.models.architecture import Architecture, num_params
from jgrpo.planner import describe, plan

ARCH = Architecture(
    family="llama",
    vocab_size=100,
    d_model=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=4,
    ffn_width=16,
    tied_embeddings=True,
)


def config(tmp_path: Path, *words: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {path: tiny}\ndata: {task: chain, num_prompts_per_step: 4, max_prompt_tokens: 16}\n"
        "rollout: {group_size: 2, max_completion_tokens: 32}\nrun: {dir: runs/x, steps: 10}\n"
    )
    return load(path, words)


def test_batch_of_a_step_is_cut_into_updates_and_microbatches(tmp_path):
    """4 prompts x 2; 2 epochs of 2 minibatches of 4 completions, in microbatches of 2."""
    words = ("optim.epochs_per_step=2", "optim.minibatches=2", "optim.microbatch_completions=2")
    got = plan(config(tmp_path, *words), ARCH, 1)
    assert (got.prompts, got.completions) == (4, 8)
    assert got.tokens == 4 * 16 + 8 * 32
    assert (got.updates, got.completions_per_update) == (4, 4)
    assert (got.microbatches, got.completions_per_microbatch) == (2, 2)


def test_devices_share_the_completions_of_an_update(tmp_path):
    got = plan(config(tmp_path), ARCH, 4)
    assert (got.microbatches, got.completions_per_microbatch) == (1, 2)
    assert got.completions_per_update == 8


def test_memory_by_kind_for_one_device(tmp_path):
    """All float32, no reference.

    Cache: 4 prompts of 16 and 8 completions of 32 tokens, each 2 (k, v) x 2 layers x 1 head x 4
    wide x 4 bytes = 64. Logits: 8 x 32 = 256 rows x 100 x 4 bytes, twice for the gradient.
    """
    memory = plan(config(tmp_path, "method.penalty=none", "method.kl_coef=0"), ARCH, 1).memory
    weights = 4 * num_params(ARCH)
    assert memory.params == memory.gradients == weights
    assert memory.optimizer == 2 * weights
    assert memory.reference == memory.rollout_weights == 0
    assert memory.kv_cache == (4 * 16 + 8 * 32) * 64
    assert memory.logits_chunk == 2 * 256 * 100 * 4
    assert memory.sampler_logits == 3 * 8 * 100 * 4
    learning = weights + memory.activations + memory.logits_chunk
    assert memory.peak == 3 * weights + learning


def test_activations_of_one_microbatch_with_full_remat(tmp_path):
    """One prompt of 16 and 2 completions of 32 tokens: 80 tokens.

    Two layer inputs (2 x 8), the rest of one layer (2x8 + 8 + 8 + 2x16, then 2x8 + 8 + 16) in
    float32; scores of one layer: 2 arrays x 2 heads x (2x32x48 + 16x16) pairs in float32.
    """
    cfg = config(tmp_path, "model.remat=full", "optim.microbatch_completions=2")
    values = 2 * 8 + (16 + 8 + 8 + 32) + (16 + 8 + 16)
    scores = 2 * 2 * (2 * 32 * 48 + 16 * 16) * 4
    assert plan(cfg, ARCH, 1).memory.activations == 80 * values * 4 + scores


def test_remat_lowers_the_estimate_in_the_expected_order(tmp_path):
    sizes = [
        plan(config(tmp_path, f"model.remat={remat}"), ARCH, 1).memory.activations
        for remat in ("full", "dots", "none")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_reference_is_counted_when_a_slot_needs_it(tmp_path):
    memory = plan(config(tmp_path, "method.penalty=k3", "method.kl_coef=0.1"), ARCH, 1).memory
    assert memory.reference == memory.params


def test_bfloat16_compute_adds_a_copy_of_the_weights_while_sampling(tmp_path):
    memory = plan(config(tmp_path, "model.dtype=bfloat16"), ARCH, 1).memory
    assert memory.rollout_weights * 2 == memory.params


def test_weights_are_split_over_fsdp_devices_except_the_embedding(tmp_path):
    one = plan(config(tmp_path), ARCH, 1).memory
    four = plan(config(tmp_path, "mesh.fsdp=2"), ARCH, 4).memory
    embedding = 100 * 8 * 4
    assert (four.params - embedding) * 2 == one.params - embedding
    assert four.kv_cache * 4 == one.kv_cache


def test_dim_that_the_devices_do_not_divide_is_stored_whole(tmp_path):
    words = ("mesh.fsdp=3", "data.num_prompts_per_step=3")
    assert plan(config(tmp_path, *words), ARCH, 3).memory.params == 4 * num_params(ARCH)


def test_supervised_step_samples_nothing(tmp_path):
    memory = plan(config(tmp_path, "method=sft", "rollout.group_size=1"), ARCH, 1).memory
    assert memory.kv_cache == memory.sampler_logits == 0


def test_mesh_that_does_not_fit_the_devices_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mesh.*does not make 4 device"):
        plan(config(tmp_path, "mesh.fsdp=3"), ARCH, 4)


def test_batch_that_does_not_divide_over_the_devices_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"4 prompts of an update must divide evenly over .* = 8"):
        plan(config(tmp_path), ARCH, 8)
    with pytest.raises(ValueError, match=r"microbatch_completions must divide the 4 completions"):
        plan(config(tmp_path, "optim.microbatch_completions=8"), ARCH, 2)


def test_gradient_of_a_microbatch_is_held_beside_the_sum(tmp_path):
    one = plan(config(tmp_path), ARCH, 1).memory
    several = plan(config(tmp_path, "optim.microbatch_completions=2"), ARCH, 1).memory
    assert several.gradients == 2 * one.gradients


def test_description_names_every_part_in_the_one_vocabulary(tmp_path):
    the_plan = plan(config(tmp_path), ARCH, 1)
    text = describe(the_plan)
    for word in ("prompts", "completions", "tokens", "updates", "microbatches", "memory"):
        assert f"\n{word} " in text
    for field in dataclasses.fields(the_plan.memory):
        assert field.name.replace("_", " ") in text
