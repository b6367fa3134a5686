import pytest

from jgrpo.planning.chips import CHIPS, topology


def test_topology_counts_its_chips():
    assert topology("v5p:2x2x4").count == 16
    assert topology("v5e:2x4").shape == (2, 4)
    assert topology("h100:8").count == 8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:2x2", "no kind 'v9'; known: cpu, v4"),
        ("v5e", "after the kind come its chips"),
        ("v5e:0x4", "after the kind come its chips"),
        ("v5e:2x2x1", "v5e has 2 dim"),
        ("v5p:4x4", "v5p has 3 dim"),
        ("h100:16", "at most 8 GPUs"),
    ],
)
def test_topology_that_does_not_exist_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        topology(name)


def test_axis_takes_the_fewest_dims_that_hold_it():
    """On 2x2x4, 4 chips lie on the long dim (2 links of 100 GB/s), 8 on two, 16 on three."""
    v5p = topology("v5p:2x2x4")
    assert [v5p.axis_speed(size) for size in (2, 4, 8, 16)] == [2e11, 2e11, 4e11, 6e11]
    assert topology("h100:8").axis_speed(8) == 450e9


def test_memory_of_a_gpu_is_what_jax_takes_of_it():
    assert CHIPS["h100"].hbm == 60e9
