from pathlib import Path

import pytest
from planned import ARCH, config

from jgrpo.planner import plan
from jgrpo.planning.chips import topology
from jgrpo.planning.costs import Cost, Costs, estimate
from jgrpo.planning.hlo import Collective

LAYER = 8 * ((4 + 2) * 4 + 3 * 16)  # q and o of 2 heads, k and v of 1, gate, up and down
HEAD = 800


def costs(tmp_path: Path, *words: str, chips: int = 1) -> Costs:
    cfg = config(tmp_path, *words)
    fsdp = cfg.mesh.fsdp
    mesh = {"replica": chips // fsdp, "fsdp": fsdp}
    return Costs(cfg=cfg, arch=ARCH, plan=plan(cfg, ARCH, chips), mesh=mesh)


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
