"""Runs that draw their prompts by what they know of them, and that train copies of groups."""

import json
from collections import Counter

import pytest
from quickstart_runs import ROUNDING, SMALL, leaves, metrics, run, samples
from stateful_methods import QUICKSTART, few_prompts

from jgrpo import config_io

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module", name="few_prompts")
def sixteen(tmp_path_factory):
    """The settings of a task of sixteen problems."""
    return few_prompts(tmp_path_factory.mktemp("data"))


def prompts(folder):
    """The prompts of each step in their order."""
    steps = [[json.loads(line) for line in text.splitlines()] for text in samples(folder)]
    return [list(dict.fromkeys(row["prompt"] for row in step)) for step in steps]


def test_pairs_are_drawn_from_what_was_seen(tmp_path, few_prompts):
    words = [*few_prompts, "method=pairing"]
    run(tmp_path, "run.steps=4", *words)
    table, asked = metrics(tmp_path), prompts(tmp_path)
    assert all(len(step) == 8 for step in asked)  # all different
    assert table[0]["draw/asked_before_fraction"] == 0
    assert table[0]["draw/success_mean"] == 0
    seen = set(asked[0])
    for step, row in zip(asked[1:], table[1:], strict=True):
        again = len(seen & set(step))
        assert row["draw/asked_before_fraction"] == again / 8
        # Behind the pairs comes what was not asked before, as long as there is any.
        assert 8 - again == min(16 - len(seen), 8 - round(8 * row["draw/paired_fraction"]))
        seen |= set(step)


def test_candidates_are_taken_from_the_order_and_used_up(tmp_path, few_prompts):
    """Of 16 candidates a step, that is of an epoch, 8 are asked: the cursor goes on by 16."""
    words = [*few_prompts, "method=pairing", "method.draw_candidates=2"]
    run(tmp_path, "run.steps=2", *words)
    assert leaves(tmp_path, 2)["cursor"] == 2 * 16
    first, second = prompts(tmp_path)
    assert len(first) == len(second) == 8
    assert metrics(tmp_path)[1]["draw/asked_before_fraction"] == len({*first} & {*second}) / 8


@pytest.mark.slow
def test_single_stream_draws_by_its_tracker(tmp_path, few_prompts):
    words = [*few_prompts, "method=spo", "rollout.group_size=1", "method.draw_candidates=0"]
    run(tmp_path, "run.steps=4", *words)
    asked = prompts(tmp_path)
    state = leaves(tmp_path, 4)
    visits = Counter(prompt for step in asked for prompt in step)
    assert (state["strategy.tracker.alpha"] + state["strategy.tracker.beta"] != 1).sum() == len(
        visits
    )


def test_copies_take_the_place_of_groups_without_a_gradient(tmp_path, few_prompts):
    run(tmp_path / "copies", "run.steps=3", *few_prompts, "method=vspo")
    run(tmp_path / "plain", "run.steps=3", *few_prompts, "method=vspo", "method.refill=none")
    copies, plain = metrics(tmp_path / "copies"), metrics(tmp_path / "plain")
    assert samples(tmp_path / "copies")[0] == samples(tmp_path / "plain")[0]
    for row in copies:
        assert row["refill/replaced_fraction"] == row["reward/zero_variance_fraction"]
        assert row["optim/skipped_updates"] == 0
    replaced = [row["refill/replaced_fraction"] for row in copies]
    assert max(replaced) > 0
    assert max(row["refill/copies_max"] for row in copies) > 1
    assert [row["grad/norm"] for row in copies] != [row["grad/norm"] for row in plain]


def test_some_completions_that_were_cut_off_are_counted_but_not_trained(tmp_path):
    words = ["rollout.max_completion_tokens=12", "method=microcoder_grpo"]
    words += ["reward.functions=[{name: length}]", "eval.num_prompts=4"]
    run(tmp_path / "all", "run.steps=1", *words, "method.spare_chance=1")
    run(tmp_path / "some", "run.steps=1", *words)
    shares = {
        name: metrics(tmp_path / name)[0]["completion/spared_fraction"] for name in ("all", "some")
    }
    (row,) = metrics(tmp_path / "all")
    assert shares["all"] == row["completion/clipped_fraction"] > 0.5
    assert 0 < shares["some"] < shares["all"]


def test_the_temperature_rises_and_log_probs_are_at_that_of_their_step(tmp_path):
    """.8, 1, 1.2 and no further."""
    words = ["method=microcoder_grpo", "rollout.temperature=0.8", "eval.num_prompts=4"]
    words += ["method.temperature_every_steps=1", "method.diversity_target=1"]
    run(tmp_path, "run.steps=4", *words)
    table = metrics(tmp_path)
    assert [row["sampling/temperature"] for row in table] == [0.8, 1.0, 1.2, 1.2]
    assert leaves(tmp_path, 4)["strategy.control"] == 2
    for row in table:
        assert 0 < row["sampling/diversity"] < 1
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["invariant/ratio_gap_max"] < ROUNDING


def test_right_completions_come_back_with_their_log_probs(tmp_path, few_prompts):
    words = [*few_prompts, "method=prioritized_replay", "method.replay_start=0"]
    words += ["rollout.chunk_tokens=56", "optim.packing=false"]  # few shapes to compile
    run(tmp_path, "run.steps=3", *words)
    check_replay(tmp_path)


def check_replay(whole):
    drawn, solved, back = {}, set(), 0
    for text, row in zip(samples(whole), metrics(whole), strict=True):
        step = [json.loads(line) for line in text.splitlines()]
        groups = [step[i : i + 4] for i in range(0, 32, 4)]
        assert len({group[0]["prompt"] for group in groups}) == 8
        assert not solved & {group[0]["prompt"] for group in groups}
        came_back = [sample for sample in step if sample["replayed"]]
        for sample in came_back:
            assert sample["group_index"] == 3
            assert sample["reward"] == 1  # judged again
            assert sample["logp"] in drawn[sample["prompt"], tuple(sample["completion_ids"])]
        assert row["replay/fraction"] == len(came_back) / 8 <= 0.5
        tokens = sum(len(s["completion_ids"]) for s in step if not s["replayed"])
        assert row["tokens/completion"] == row["plan/drawn_tokens"] == tokens
        assert row["invariant/logp_gap_max"] < 1e-4
        for group in groups:
            right = [sample for sample in group if sample["reward"] == 1]
            if len(right) == 4:
                solved.add(group[0]["prompt"])
            for sample in right:
                key = sample["prompt"], tuple(sample["completion_ids"])
                drawn.setdefault(key, []).append(sample["logp"])
        assert row["replay/retired_prompts"] == len(solved)
        back += len(came_back)
    assert back > 4
    assert solved
    state = leaves(whole, 3)
    assert state["strategy.replay.written"] >= back
    assert state["strategy.replay.started"]
    assert state["strategy.replay.retired"].sum() == len(solved)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=prioritized_replay", "rollout.lag=1"], r"rollout.lag.*must be 0 with plan"),
        (["method=prioritized_replay", "method.draw=pairs"], r"method.draw.*must be 'order' with"),
        (["method=prioritized_replay", "method.plan=uniform"], r"method.plan.*must be 'replay'"),
        (["method=pairing", "rollout.lag=1"], r"rollout.lag.*must be 0 with draw 'pairs'"),
        (["method=pairing", "method.sampler=dynamic"], r"method.sampler.*must be 'uniform'"),
        (["method=grpo", "method.draw=priority"], r"method.tracker.*'success' or 'beta'"),
        (["method=vspo", "method.source=both"], r"method.source.*must be 'policy' with refill"),
    ],
)
def test_what_cannot_be_combined_is_refused(words, message):
    with pytest.raises(config_io.ConfigError, match=message):
        config_io.load(QUICKSTART, [*SMALL, *words])


def test_too_few_prompts_are_refused(tmp_path, few_prompts):
    words = ["method=pairing", "data.num_prompts_per_step=32", "rollout.group_size=2"]
    with pytest.raises(ValueError, match="32 prompts are to be drawn from 16 candidates"):
        run(tmp_path, "run.steps=1", *few_prompts, *words)
