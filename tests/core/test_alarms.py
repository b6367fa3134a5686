import pytest

from jgrpo.alarms import ALARMS, Alarms

GOOD = {
    "reward/mean": 0.5,
    "reward/std": 0.5,
    "reward/zero_variance_fraction": 0.3,
    "completion/length_mean": 100.0,
    "completion/clipped_fraction": 0.1,
    "completion/repetition": 0.1,
    "entropy/mean": 1.0,
    "grad/norm": 1.0,
    "optim/skipped_updates": 0,
}
BAD = {
    "reward_collapse": {"reward/mean": 0.1},
    "length_collapse": {"completion/length_mean": 10.0, "reward/mean": 0.4},
    "length_explosion": {"completion/clipped_fraction": 0.9},
    "entropy_collapse": {"entropy/mean": 0.01},
    "zero_variance_groups": {"reward/zero_variance_fraction": 0.95},
    "repetition": {"completion/repetition": 0.7},
    "no_gradient": {"grad/norm": 0.0},
    "skipped_updates": {"optim/skipped_updates": 1, "grad/norm": None},
}


def fired(*phases: tuple[int, dict]) -> list[str]:
    """Names of the alarms, in order, of so many steps each with changes to good ones."""
    alarms = Alarms()
    lines = [
        line
        for count, changes in phases
        for _ in range(count)
        for line in alarms.see(GOOD | changes)
    ]
    return [line.removeprefix("ALARM ").split(":")[0] for line in lines]


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_fires_once_when_its_metric_goes_wrong(name: str):
    assert fired((10, {}), (30, BAD[name])) == [name]


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_says_what_it_saw_and_where_to_look(name: str):
    alarms = Alarms()
    lines = [line for row in [GOOD] * 10 + [GOOD | BAD[name]] * 10 for line in alarms.see(row)]
    assert len(lines) == 1
    assert "{" not in lines[0]
    assert len(lines[0]) > 60


def test_a_run_that_learns_rings_nothing():
    """Reward to .95, entropy and length down, most groups equal: what success looks like."""
    alarms = Alarms()
    for step in range(100):
        share = step / 100
        lines = alarms.see(
            GOOD
            | {
                "reward/mean": 0.2 + 0.75 * share,
                "reward/std": 0.45 - 0.23 * share,
                "reward/zero_variance_fraction": 0.1 + 0.82 * share,
                "completion/length_mean": 100 - 60 * share,
                "entropy/mean": 1.0 - 0.96 * share,
            }
        )
        assert lines == []


def test_one_bad_step_rings_nothing_but_a_skipped_update():
    for name, changes in BAD.items():
        expected = [name] if name == "skipped_updates" else []
        assert fired((20, {}), (1, changes), (20, {})) == expected


def test_nothing_rings_in_the_first_nine_steps():
    assert fired(*[(1, changes) for changes in BAD.values()]) == []
