import dataclasses
from pathlib import Path

import pytest
from planned import ARCH, config

from jgrpo.models.architecture import Architecture
from jgrpo.parallel.mesh import axis_sizes
from jgrpo.planner import plan
from jgrpo.planning.chips import topology
from jgrpo.planning.costs import Cost, Costs, estimate
from jgrpo.planning.hlo import Collective

LAYER = 8 * ((4 + 2) * 4 + 3 * 16)  # q and o of 2 heads, k and v of 1, gate, up and down
HEAD = 800


def costs(tmp_path: Path, *words: str, chips: int = 1, arch: Architecture = ARCH) -> Costs:
    cfg = config(tmp_path, *words)
    mesh = axis_sizes(cfg.mesh, chips)
    return Costs(cfg=cfg, arch=arch, plan=plan(cfg, arch, chips), mesh=mesh)


def test_operations_of_an_update(tmp_path):
    """320 tokens in the layers, three passes; 256 in the head, four.

    Pairs of a token and one that it sees: 256 x (16 + 16) and 4 x 16 x 8, 32 operations each.
    """
    pairs = 256 * (16 + 16) + 4 * 16 * 8
    forward = 2 * (2 * 320 * LAYER + 32 * pairs)
    assert costs(tmp_path).update().flops == 3 * forward + 4 * 2 * 256 * HEAD
    again = costs(tmp_path, "model.remat=full").update().flops
    assert again == 4 * forward + 4 * 2 * 256 * HEAD
    assert costs(tmp_path).forward().flops == forward + 2 * 256 * HEAD


def test_chips_share_the_operations(tmp_path):
    assert costs(tmp_path, chips=4).update().flops * 4 == costs(tmp_path).update().flops


def test_part_of_a_group_reads_its_prompt_again(tmp_path):
    """Microbatches of 1: 8 prompts are read in place of 4."""
    more = costs(tmp_path, "optim.microbatch_completions=1").update().flops
    prompts = 4 * 16
    extra = 3 * 2 * (2 * prompts * LAYER + 32 * prompts * 8)
    assert more == costs(tmp_path).update().flops + extra


def test_decoding_reads_weights_and_rings_at_every_step(tmp_path):
    """16 steps: 2 layers and the head in float32; caches of 320 tokens, 64 bytes each."""
    cached = (4 * 16 + 8 * 32) * 64
    logits = 3 * 8 * 100 * 4
    assert costs(tmp_path).decode(32).bytes == 16 * ((2 * LAYER + HEAD) * 4 + cached + logits)
    assert costs(tmp_path).decode_calls() == [(16, 1.0), (32, 1.0)]


def test_slots_make_waves(tmp_path):
    few = costs(tmp_path, "rollout.slots=2")
    assert few.waves == 4
    assert few.decode_calls() == [(16, 4.0), (32, 4.0)]


def test_weights_are_gathered_once_a_pass_and_gradients_scattered_once(tmp_path):
    """Two devices, two microbatches, three passes: six times the weights of two layers."""
    words = ("mesh.fsdp=2", "optim.microbatch_completions=2")
    gathered, scattered = costs(tmp_path, *words, chips=2).update().collectives
    assert (gathered.kind, gathered.count, gathered.bytes) == ("all-gather", 6, 6 * 2 * LAYER * 4)
    assert (scattered.kind, scattered.count) == ("reduce-scatter", 2)
    assert costs(tmp_path, chips=1).update().collectives == ()


@pytest.mark.parametrize(
    ("kind", "sent"), [("all-gather", 750), ("all-reduce", 1500), ("collective-permute", 1000)]
)
def test_estimate_is_the_longest_of_three(kind, sent):
    """v5e: 197e12 operations, 819e9 bytes a second; 4 chips on one dim, two links of 50e9."""
    exchange = Collective(kind=kind, axes=("fsdp",), size=4, bytes=1000, count=1)
    assert exchange.sent == sent
    found = estimate(Cost(flops=197, bytes=819, collectives=(exchange,)), topology("v5e:1x4"))
    assert found.compute_s == pytest.approx(1e-12)
    assert found.memory_s == pytest.approx(1e-9)
    assert found.exchange_s == pytest.approx(sent / 1e11)
    assert found.seconds == found.exchange_s
    assert found.bottleneck == "exchange"


# Experts of 8 hidden units: each token passes 2 of 4.
MIXED = dataclasses.replace(
    ARCH,
    family="qwen3_moe",
    num_kv_heads=2,
    ffn_width=0,
    tied_embeddings=False,
    num_experts=4,
    experts_per_token=2,
    expert_width=8,
    qk_norm=True,
)


def test_chips_of_a_tensor_axis_share_the_layers_and_sum_their_streams(tmp_path):
    """An axis of 2, twice two sums of a layer: 64 + 256 tokens of 8 numbers, three passes."""
    arch = dataclasses.replace(ARCH, num_kv_heads=2, ffn_width=16)
    words = ("mesh.tensor=2", "mesh.replica=1")
    whole = costs(tmp_path, arch=arch)
    half = costs(tmp_path, *words, chips=2, arch=arch)
    head = 4 * 2 * 256 * HEAD  # tied: whole on both
    assert half.update().flops - head == (whole.update().flops - head) / 2
    (summed,) = half.update().collectives
    assert (summed.kind, summed.axes) == ("all-reduce", ("tensor",))
    assert summed.bytes == 3 * 2 * 2 * 320 * 8 * 4
    assert half.waves == whole.waves  # prompts are not split


def test_experts_are_split_and_rows_go_there_and_back(tmp_path):
    """Two chips with half of the batch each: 160 tokens, which both see, in three passes."""
    whole, half = (
        costs(tmp_path, *w, chips=n, arch=MIXED)
        for w, n in (((), 1), (("mesh.expert=2", "mesh.replica=1"), 2))
    )
    assert half.update().flops == whole.update().flops / 2
    gathered, scattered = half.update().collectives
    assert (gathered.kind, scattered.kind) == ("all-gather", "reduce-scatter")
    assert gathered.bytes == scattered.bytes == 3 * 2 * (160 * 8 * 4) * 2
    layer = 8 * 8 * 4 + 4 * 8 * (3 * 8 + 1)  # attention, and experts with the router
    read = whole.decode(32).bytes - half.decode(32).bytes
    of_experts = 2 * 4 * 8 * (3 * 8 + 1) / 2 * 4
    cached = (2 * 16 + 4 * 32) * 2 * 64 + 3 * 4 * 100 * 4  # of half of the completions
    assert read == 16 * (of_experts + cached)
    assert layer == whole._layer


def test_adapters_save_a_pass_and_most_of_the_gradients(tmp_path):
    full, small = costs(tmp_path, chips=2), costs(tmp_path, "model.lora.rank=2", chips=2)
    pairs = 256 * (16 + 16) + 4 * 16 * 8
    forward = (2 * (2 * 320 * LAYER + 32 * pairs)) / 2
    assert full.update().flops - small.update().flops == forward + 2 * 128 * HEAD
    (of_full,), (of_small,) = full.update().collectives, small.update().collectives
    assert of_small.bytes == small.plan.num_trained * 4 < of_full.bytes
