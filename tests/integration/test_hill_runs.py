"""Runs with a hinter: a second policy that writes hints, is paid for them and learns."""

import contextlib

import jax
import numpy as np
import pytest
from quickstart_runs import ROUNDING, SMALL, leaves, metrics, run, sample_rows
from stateful_methods import HILL, HINT_FORM, QUICKSTART

from jgrpo import config_io
from jgrpo.algo.hinting import hill_base, hint_of
from jgrpo.assembly import assemble


def assembled(*words):
    words = [*SMALL, *HILL, "run.dir=unused", *words]
    with contextlib.closing(assemble(config_io.load(QUICKSTART, words))) as found:
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four steps in one go."""
    folder = tmp_path_factory.mktemp("hill")
    run(folder, *HILL, "run.steps=4", "checkpoint.every=1", "checkpoint.keep=4")
    return folder


def test_hints_are_drawn_paid_and_put_into_groups(whole):
    groups, hints = {}, {}
    for row in sample_rows(whole):
        to = hints if row["role"] else groups
        to.setdefault((row["step"], row["prompt_index"]), []).append(row)
    replaced = {at: group for at, group in groups.items() if group[0]["replaced"]}
    assert replaced, "the run has no case of what is to be seen"
    assert len(hints) > len(replaced)
    for at, written in hints.items():
        assert [row["group_index"] for row in written] == [0, 1, 2]
        assert {(row["role"], row["round"]) for row in written} == {("hinter", 2)}
        assert len({row["context"] for row in written}) == 1
        rewards = np.array([row["reward"] for row in written])
        if np.ptp(rewards) > 0:
            expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
            np.testing.assert_allclose([r["advantage"] for r in written], expected, atol=1e-3)
        if at not in replaced:
            assert all(row["reward"] <= 0 for row in written)
            assert all(row["reward"] <= 0.5 and row["round"] == 1 for row in groups[at])
    for at, group in replaced.items():
        assert len(group) == 3
        assert all(row["replaced"] and row["round"] == 3 for row in group)
        ((level, context),) = {(row["level"], row["context"]) for row in group}
        hint = hints[at][level - 1]
        assert context == group[0]["prompt"] + hint_of(HINT_FORM, hint["completion"])
        right = sum(row["reward"] > 0.5 for row in group)
        assert 0 < right < 3
        assert 0 < hint["reward"] <= hill_base(np.array(right), np.array(3)) + 1e-6
        assert hint["reward"] == max(row["reward"] for row in hints[at])
    for at in groups.keys() - hints.keys():
        assert any(row["reward"] > 0.5 for row in groups[at])


def test_metrics_say_how_hints_fare(whole):
    for row in metrics(whole):
        # The hinter's log-probs are among these: its hints are trained under what it has read.
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
        drawn = [r for r in sample_rows(whole, row["step"]) if r["role"]]
        assert row["plan/again_fraction"] == len(drawn) / 3 / 16
        assert row["role/hinter/updates"] == (len(drawn) > 0)
        paid = [r["reward"] for r in drawn]
        assert row["hint/reward_mean"] == pytest.approx(np.mean(paid), abs=1e-6)
        faults = np.isclose(paid, -0.2).mean()
        assert row["hint/valid_fraction"] == pytest.approx(1 - faults, abs=1e-6)
        assert row["hint/leak_fraction"] <= faults + 1e-6
        assert np.isfinite(row["role/hinter/loss"])
    assert max(row["role/hinter/grad_norm"] for row in metrics(whole)) > 0
    assert any(row["hint/reliance_mean"] < 0 for row in metrics(whole))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_hinter_learns_and_the_policy_does_not_notice(whole, tmp_path):
    """With a rate of 0 the hinter stays what the policy was; the policy's update is the same."""
    run(tmp_path, *HILL, "run.steps=1", "optim.role_lr=0")
    still, moved = leaves(tmp_path, 1), leaves(whole, 1)
    assert still.keys() == moved.keys()
    begun = {
        ".".join(key.key for key in path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(assembled().model.params)
    }
    changed = 0
    for name, value in still.items():
        if name.startswith("aux.roles.hinter.params."):
            inner = name.removeprefix("aux.roles.hinter.params.")
            np.testing.assert_array_equal(value, begun[inner])
            assert np.any(value != still[f"params.{inner}"]), "the policy has moved"
            changed += np.any(value != moved[name])
        elif not name.startswith("aux."):
            np.testing.assert_array_equal(value, moved[name], err_msg=name)
    assert changed == len(begun)


def test_a_hinter_is_split_over_the_devices_as_the_policy_is():
    state = assembled("mesh.fsdp=4").initial_state()
    hinter = state.aux["roles"]["hinter"]
    for of_policy, of_hinter in (
        (state.params, hinter.params),
        (state.opt_state, hinter.opt_state),
    ):
        ours, theirs = jax.tree.leaves(of_policy), jax.tree.leaves(of_hinter)
        assert [x.sharding for x in ours] == [x.sharding for x in theirs]
    assert not all(x.is_fully_replicated for x in jax.tree.leaves(hinter.params))


@pytest.mark.slow
def test_rounded_log_probs_are_replaced_by_the_hinters_own(tmp_path):
    run(tmp_path, *HILL, "run.steps=1", "model.dtype=bfloat16")
    (row,) = metrics(tmp_path)
    assert row["role/hinter/updates"] == 1
    assert 0 < row["invariant/logp_gap_max"] < 1
    assert np.isfinite(row["role/hinter/loss"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.sampler=dynamic"], r"method.sampler.*must be 'uniform' with plan 'hinter'"),
        (["method.control=diversity"], r"method.control.*must be 'constant' with plan 'hinter'"),
        (["rollout.lag=1"], r"rollout.lag.*must be 0 with plan 'hinter'"),
        (['context.hint_form="(x"'], r"context.hint_form.*must be a regular expression"),
        (['context.hint_form="x"'], r"context.hint_form.*must have a group"),
        (['context.hinter="{prompt}{draft}"'], r"context.hinter.*must contain \{solution\}"),
        (['context.hinted="{hint}"'], r"context.hinted.*must contain \{prompt\}"),
        (["method.hints=1"], r"hints.*must be at least 2"),
    ],
)
def test_what_a_hinter_cannot_do_is_refused(words, message):
    with pytest.raises(config_io.ConfigError, match=message):
        config_io.load(QUICKSTART, [*SMALL, *HILL, *words])
