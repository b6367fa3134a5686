"""The temperature from step to step, by hand."""

from pathlib import Path

import pytest

from jgrpo import algo, config_io
from jgrpo.algo.controlling import diversity, next_stage, temperatures

RECIPE = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
M = algo.method("microcoder_grpo", temperature_every_steps=50, diversity_target=0.5)


def after(measured, m=M, start=0.8):
    """Stages of the steps after those with such diversities."""
    stages = [0]
    for step, d in enumerate(measured, start=1):
        stages.append(next_stage(m, stages[-1], d, step, start))
    return stages


def test_the_temperature_rises_by_one_stage_when_output_is_too_much_alike_and_never_falls():
    """Low at step 49 and 51: nothing. At 50 and 150: a stage each. High at 100; 200: the last."""
    low = [0.4] * 99 + [0.6] + [0.4] * 100
    stages = after(low)
    rises = [n for n in range(1, 201) if stages[n] > stages[n - 1]]
    assert rises == [50, 150]
    assert stages[-1] == 2
    assert [temperatures(M, 0.8)[s] for s in (0, 1, 2)] == [0.8, 1.0, 1.2]
    assert after([0.5] * 50)[-1] == 0  # at the target it is diverse enough
    assert after([0.9] * 100)[-1] == 0


def test_stages_begin_at_the_temperature_of_the_run():
    assert temperatures(M, 1.1) == (1.1, 1.2)
    assert temperatures(M, 2.0) == (2.0,)
    assert after([0.1] * 50, start=2.0)[-1] == 0
    unordered = algo.method("microcoder_grpo", temperature_stages=(1.5, 1.2, 1.5))
    assert temperatures(unordered, 1.0) == (1.0, 1.2, 1.5)


def test_diversity_counts_the_grams_of_a_group_once():
    """Bigrams 12 23 | 12 24: 3 of 4 differ. 56 | 56: 1 of 2. A prompt without any: 1."""
    groups = [[1, 2, 3], [1, 2, 4], [5, 6], [5, 6], [7], []]
    assert diversity(groups, 2, 2) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert diversity(groups[2:4], 2, 1) == 1 / 2


def test_a_step_cannot_be_sampled_ahead_of_what_its_temperature_follows_from():
    words = ["run.dir=x", "method=microcoder_grpo", "rollout.lag=1"]
    with pytest.raises(config_io.ConfigError, match=r"rollout.lag.*must be 0 with control 'divers"):
        config_io.load(RECIPE, words)
