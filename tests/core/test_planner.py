import dataclasses

import pytest
from planned import ARCH, config

from jgrpo.models.architecture import num_params
from jgrpo.planner import describe, plan


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


def test_weights_are_split_over_fsdp_devices_and_gathered_to_sample(tmp_path):
    one = plan(config(tmp_path), ARCH, 1).memory
    four = plan(config(tmp_path, "mesh.fsdp=2"), ARCH, 4).memory
    split = plan(config(tmp_path, "mesh.fsdp=2", "rollout.gather_weights=false"), ARCH, 4).memory
    assert four.params * 2 == one.params == four.rollout_weights
    assert split.rollout_weights == one.rollout_weights == 0  # float32 need no copy
    assert four.kv_cache * 4 == one.kv_cache


def test_dim_that_the_devices_do_not_divide_is_stored_whole(tmp_path):
    words = ("mesh.fsdp=3", "data.num_prompts_per_step=3")
    assert plan(config(tmp_path, *words), ARCH, 3).memory.params == 4 * num_params(ARCH)


def test_adapters_are_all_that_is_trained_beside_frozen_weights(tmp_path):
    """Rank 2 on q (8 x 2 + 2 x 8) and down (16 x 2 + 2 x 8) of two layers: 160 numbers."""
    words = ("model.lora.rank=2", "model.lora.targets=.*(q|down)_proj", "method.kl_coef=0.1")
    got = plan(config(tmp_path, *words, "method.penalty=k3"), ARCH, 1)
    memory = got.memory
    assert (got.num_params, got.num_trained) == (num_params(ARCH), 160)
    assert memory.params == memory.gradients == 4 * 160
    assert memory.optimizer == 2 * 4 * 160
    assert memory.frozen == 4 * num_params(ARCH)
    assert memory.reference == memory.rollout_weights == 0
    assert "trained            160" in describe(got)
    half = plan(config(tmp_path, *words, "model.dtype=bfloat16"), ARCH, 1).memory
    assert (half.frozen, half.params) == (2 * num_params(ARCH), 4 * 160)


def test_frozen_matrices_in_few_bits_take_few_bytes(tmp_path):
    """Matrices of a layer: 64 + 32 + 32 + 64 + 3 x 128 = 576; nf4 has a float32 scale for 64."""
    few = {}
    for bits in ("int8", "nf4"):
        words = ("model.lora.rank=2", f"model.lora.quantize={bits}")
        few[bits] = plan(config(tmp_path, *words), ARCH, 1).memory.frozen
    others = 4 * (num_params(ARCH) - 2 * 576)
    assert few["int8"] == others + 2 * 576
    assert few["nf4"] == others + 2 * 576 / 2 + 2 * 576 / 64 * 4


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


def test_tensor_axis_that_does_not_divide_the_model_is_refused_with_those_that_do(tmp_path):
    wide = dataclasses.replace(ARCH, num_heads=8, num_kv_heads=4, ffn_width=24)
    match = r"mesh.tensor must divide \{.*'kv_heads': 4\} of the model, got 8; what does: 1, 2, 4"
    with pytest.raises(ValueError, match=match):
        plan(config(tmp_path, "mesh.tensor=8"), wide, 8)
    halved = plan(config(tmp_path, "mesh.tensor=2"), wide, 2).memory
    assert halved.params < 0.7 * plan(config(tmp_path), wide, 1).memory.params
    untied = dataclasses.replace(wide, tied_embeddings=False, vocab_size=101)
    with pytest.raises(ValueError, match=r"'vocab': 101\} of the model, got 2; what does: 1$"):
        plan(config(tmp_path, "mesh.tensor=2"), untied, 2)


def test_parts_of_groups_are_refused_on_a_mesh_of_three_axes(tmp_path):
    words = ("mesh.fsdp=2", "mesh.tensor=2", "data.num_prompts_per_step=16")
    wide = dataclasses.replace(ARCH, num_heads=4, num_kv_heads=2)
    assert plan(config(tmp_path, *words, "optim.microbatch_completions=2"), wide, 8).devices == 8
    with pytest.raises(ValueError, match=r"multiple of a group's 2 .*mesh.tensor"):
        plan(config(tmp_path, *words, "optim.microbatch_completions=1"), wide, 8)


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


def test_critic_is_counted_with_its_moments_and_gradient(tmp_path):
    """A vector of the model's width (8) and a bias, in float32; nothing for other methods."""
    words = ("method=ppo_clip", "method.kl_coef=0", "rollout.group_size=1")
    without = ("method=sft", "rollout.group_size=1")
    critic, none = (plan(config(tmp_path, *w), ARCH, 1).memory for w in (words, without))
    assert (critic.critic, none.critic) == (3 * 9 * 4, 0)
    assert critic.gradients == none.gradients + 9 * 4
    assert critic.activations == none.activations
    halved = plan(config(tmp_path, *words, "optim.microbatch_completions=1"), ARCH, 1).memory
    assert halved.gradients == 2 * critic.gradients
    always = critic.params + critic.optimizer + critic.critic
    assert critic.peak == always + max(
        critic.gradients + critic.activations + critic.logits_chunk,
        critic.kv_cache + critic.sampler_logits,
    )


def test_critic_of_a_bfloat16_model_keeps_the_states_it_reads_in_float32(tmp_path):
    """4 completions of 32 tokens, 8 wide."""
    bf16 = ("model.dtype=bfloat16", "rollout.group_size=1", "method.kl_coef=0")
    critic, none = (
        plan(config(tmp_path, *bf16, f"method={name}"), ARCH, 1).memory.activations
        for name in ("ppo_clip", "reinforce_pp")
    )
    assert critic - none == 4 * 32 * 8 * 4


def test_pivot_is_sampled_and_cached_beside_the_group(tmp_path):
    got = plan(config(tmp_path, "method=mc_grpo"), ARCH, 1)
    assert got.completions == 4 * 3
    assert got.memory.kv_cache == (4 * 16 + 12 * 32) * 64


def test_allocated_groups_may_take_twice_the_passes(tmp_path):
    """In the worst case each prompt's last row is nearly empty; the budget is the same."""
    words = ("optim.microbatch_completions=2", "method.rollouts_min=1")
    even = plan(config(tmp_path, "method=grpo", words[0]), ARCH, 1)
    uneven = plan(config(tmp_path, "method=knapsack", *words), ARCH, 1)
    assert uneven.completions == even.completions == 8
    assert (even.microbatches, uneven.microbatches) == (4, 8)
    bounded = plan(config(tmp_path, "method=knapsack", *words, "method.rollouts_max=2"), ARCH, 1)
    assert bounded.microbatches == 4
