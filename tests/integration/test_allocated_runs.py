"""Runs whose prompts get completions in unequal numbers: the budget, the state, the metrics."""

import json
from collections import Counter

import numpy as np
import pytest
from quickstart_runs import ROUNDING, SMALL, leaves, metrics, run, samples
from stateful_methods import QUICKSTART, few_prompts

from jgrpo import config_io

# A task of 16 prompts, 8 a step: from the third step on every prompt has been asked before.
BUDGET = 8 * 6


@pytest.fixture(name="few_prompts")
def sixteen(tmp_path):
    """Groups of six, of a task of sixteen problems."""
    return [*few_prompts(tmp_path), "rollout.group_size=6"]


def groups_of(folder):
    """Completions of each prompt, step by step."""
    rows = [[json.loads(line) for line in text.splitlines()] for text in samples(folder)]
    return [Counter(row["prompt_index"] for row in step) for step in rows], rows


def check(folder, method):
    """Budget, samples and metrics of every step; returns the last step's largest less smallest."""
    counts, completions = groups_of(folder)
    for row, count, step in zip(metrics(folder), counts, completions, strict=True):
        total = sum(count.values())
        assert len(count) == 8
        assert total <= BUDGET if method == "v0_5" else total == BUDGET
        assert row["sampling/group_min"] == min(count.values())
        assert row["sampling/group_max"] == max(count.values())
        assert row["tokens/completion"] == sum(len(s["completion_ids"]) for s in step)
        rewards = [s["reward"] for s in step]
        np.testing.assert_allclose(row["reward/mean"], np.mean(rewards), rtol=1e-6)
        assert row["reward/masked_fraction"] == 0
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
    return max(counts[-1].values()) - min(counts[-1].values())


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("method", ["knapsack", "v0_5"])
def test_budget_is_kept(tmp_path, few_prompts, method):
    words = [*few_prompts, f"method={method}", "method.prior_noise=0.25"]
    run(tmp_path, "run.steps=3", *words)
    assert check(tmp_path, method) > 1
    assert leaves(tmp_path, 3)["strategy.tracker.seen"].all()


@pytest.mark.slow
def test_uncertain_prompts_are_asked_more_with_minibatches_and_microbatches(tmp_path, few_prompts):
    words = ["method=xrpo", "optim.minibatches=1", "optim.microbatch_completions=2"]
    run(tmp_path / "run", "run.steps=1", *few_prompts, *words)
    assert check(tmp_path / "run", "xrpo") > 1


@pytest.mark.slow
def test_first_step_of_a_tracker_is_that_of_equal_groups(tmp_path, few_prompts):
    """Nothing is known: everybody gets the same, with the same noise, and trains the same."""
    words = ["run.steps=1", *few_prompts]
    run(tmp_path / "equal", "method=grpo", *words)
    run(tmp_path / "shared", "method=knapsack", *words)
    equal, shared = (groups_of(tmp_path / name)[1][0] for name in ("equal", "shared"))
    for field in ("prompt_index", "group_index", "completion_ids", "reward"):
        assert [row[field] for row in equal] == [row[field] for row in shared]
    equal, shared = (metrics(tmp_path / name)[0] for name in ("equal", "shared"))
    assert (shared["sampling/group_min"], shared["sampling/group_max"]) == (6, 6)
    del equal["sampling/wasted_fraction"]  # there are slots for larger groups
    for name, value in equal.items():
        np.testing.assert_allclose(shared[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["method=knapsack", "method.sampler=dynamic"], "method.sampler", "must be 'uniform'"),
        (["method=knapsack", "method.source=both"], "method.source", "must be 'policy'"),
        (["method=knapsack", "method.tracker=none"], "method.tracker", "'success' or 'beta'"),
        (["method=grpo", "method.base=prior"], "method.tracker", "'success' or 'beta'"),
        (["method=knapsack", "method.rollouts_min=7"], "method.rollouts_min", "from 1 to the mean"),
        (["method=knapsack", "method.rollouts_max=3"], "method.rollouts_max", "at least the mean"),
        (
            ["method=v0_5", "reward.functions=[{name: 'a:b', per: group}]"],
            "reward.functions.0.per", "must be 'completion' with allocate 'v0_5'",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_with_an_allocation_is_refused(words, key, message):
    with pytest.raises(config_io.ConfigError) as caught:
        config_io.load(QUICKSTART, [*SMALL, *words])
    assert f"{key}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.slow
def test_pivot_is_sampled_on_top_of_the_group(tmp_path):
    """G + 1 are drawn of each prompt, and G of them trained; G = 2, as in the paper's scripts."""
    run(tmp_path, "run.steps=1", "method=mc_grpo", "rollout.group_size=2")
    counts, (rows,) = groups_of(tmp_path)
    assert set(counts[0].values()) == {3}
    for index in counts[0]:
        group = [row for row in rows if row["prompt_index"] == index]
        assert min(abs(row["advantage"]) for row in group) == 0
