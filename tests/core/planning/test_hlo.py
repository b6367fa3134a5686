"""What is read from HLO texts: one recorded from libtpu, abridged, and single lines.

`advance_v5e_2x2.hlo` is the decode loop of the quickstart (4 layers, 32 steps) on v5e:2x2 with
mesh.fsdp=2, libtpu 0.0.42; left out is what exchanges nothing, and layouts and metadata.
"""

from pathlib import Path

import pytest

from jgrpo.planning.hlo import collectives

RECORDED = Path(__file__).parent / "advance_v5e_2x2.hlo"
MESH = {"replica": 2, "fsdp": 2}


def only(line: str, mesh: dict[str, int] = MESH):
    """What is found in a program of one line."""
    (found,) = collectives(
        f"HloModule m\n\nENTRY %main (a: f32[]) -> f32[] {{\n  {line}\n}}\n", mesh
    )
    return found


def test_decode_loop_gathers_every_weight_of_every_layer_at_every_step():
    """7 gathers a layer and step, four of which the compiler writes into several fusions each.

    In bfloat16: the weights q (128 x 96), k and v (64 x 96), gate and up (96 x 320), whose dim of
    96 is split; and in place of the weights o and down what they are multiplied with, 32 rows of
    128 and of 320.
    """
    found = collectives(RECORDED.read_text(), MESH)
    gathered = next(c for c in found if c.kind == "all-gather" and c.axes == ("fsdp",))
    assert (gathered.count, gathered.size) == (32 * 4 * 7, 2)
    weights = 96 * (128 + 2 * 64 + 2 * 320)
    assert gathered.bytes == 32 * 4 * 2 * (weights + 32 * (128 + 320))
    over = {(c.kind, c.axes): c.count for c in found}
    # Whether any slot has work is asked before each of the 32 steps.
    assert over[("all-reduce", ("replica", "fsdp"))] == 32
    assert over[("all-to-all", ("fsdp",))] == 32 * 4 * 2 + 1
    assert [c.bytes for c in found] == sorted((c.bytes for c in found), reverse=True)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3}}", ("fsdp",)),
        ("{{0,2},{1,3}}", ("replica",)),
        ("[2,2]<=[4]", ("fsdp",)),
        ("[2,2]<=[2,2]T(1,0)", ("replica",)),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", ("fsdp",)),
        ("mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_1'}", ("replica",)),
        ("mesh['axis_0'=4,'axis_1'=1] {'axis_0'}", ("replica", "fsdp")),
    ],
)
def test_axes_are_those_along_which_a_group_differs(groups, axes):
    found = only(f"%a = f32[8,4]{{1,0}} all-reduce(%b), replica_groups={groups}, to_apply=%add")
    assert found.axes == axes
    assert found.bytes == 8 * 4 * 4


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%g = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%b), replica_groups={{0,1}}", 64),
        ("%g = (bf16[4,4], bf16[8,4]) all-gather-start(%b), replica_groups={{0,1}}", 64),
        ("%s = f32[4,4]{1,0} reduce-scatter(%b), replica_groups={{0,1}}, to_apply=%add", 128),
        ("%r = (f32[8], /*index=1*/s8[8]) all-reduce(%b, %c), replica_groups={{0,1}}", 40),
        (
            "%p = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) "
            "collective-permute-start(%b), source_target_pairs={{0,1},{2,3}}",
            32,
        ),
    ],
)
def test_bytes_are_those_of_the_whole(line, size):
    assert only(line).bytes == size


def test_end_of_an_asynchronous_one_is_not_counted_again():
    lines = (
        "%p = (f32[8], f32[8]) all-gather-start(%b), replica_groups={{0,1}}\n"
        "  %d = f32[8] all-gather-done(%p)"
    )
    assert only(lines).count == 1


def test_trip_count_that_xla_writes_is_used():
    text = (
        "HloModule m\n\n%body (a: f32[]) -> f32[] {\n"
        "  %r = f32[2] all-reduce(%b), replica_groups={}\n}\n\n"
        "ENTRY %main (a: f32[]) -> f32[] {\n  %w = f32[] while(%a), condition=%c, body=%body, "
        'backend_config={"known_trip_count":{"n":"7"}}\n}\n'
    )
    (found,) = collectives(text, MESH)
    assert (found.count, found.size, found.bytes) == (7, 4, 7 * 8)


def test_group_of_one_chip_exchanges_nothing():
    line = "  %r = f32[2] all-reduce(%b), replica_groups={{0},{1}}\n"
    assert collectives(f"ENTRY %main (a: f32[]) -> f32[] {{\n{line}}}\n", MESH) == ()
