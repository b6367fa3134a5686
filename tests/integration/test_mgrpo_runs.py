"""Runs of a main agent that calls a sub-agent: answers are drawn, injected, paid and learned from.

The embedded model knows no tags: the sums that it works out are its calls, the sub-agent is asked
for each, and its answers are gone on from.
"""

import contextlib
import re

import numpy as np
import pytest
from quickstart_runs import ROOT, ROUNDING, SMALL, leaves, metrics, run, sample_rows
from stateful_methods import ANSWER_FORM, CALL_FORM, MGRPO, QUICKSTART
from transformers import AutoTokenizer

from jgrpo import config_io
from jgrpo.algo.delegating import calls_of
from jgrpo.algo.hinting import hint_of
from jgrpo.assembly import assemble
from jgrpo.rewards.functions import sum_match

PROMPTS, K, D, MOST = 8, 4, 2, 3  # of the settings of `MGRPO`


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three steps in one go."""
    folder = tmp_path_factory.mktemp("m_grpo")
    run(folder, *MGRPO, "run.steps=3", "checkpoint.every=1", "checkpoint.keep=3")
    return folder


def answer_of(row):
    return hint_of(ANSWER_FORM, row["completion"])


def of_prompts(folder):
    """The main agent's completions, and those of the sub-agent, by step and prompt."""
    mains, subs = {}, {}
    for row in sample_rows(folder):
        to = subs if row["role"] else mains
        to.setdefault((row["step"], row["prompt_index"]), {})[row["group_index"]] = row
    return mains, subs


def test_answers_stand_behind_the_turn_that_called(whole):
    """The first turn keeps its end, which is drawn and trained like the rest of it."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "jgrpo" / "assets" / "tiny")
    mains, subs = of_prompts(whole)
    numbers = []
    for at, group in mains.items():
        assert sorted(group) == list(range(K))
        for k, row in group.items():
            answers = [a for i, a in sorted(subs.get(at, {}).items()) if i // D == k]
            ids, end, calls = row["completion_ids"], len(row["completion_ids"]), []
            if tokenizer.eos_token_id in ids:  # a turn that was cut off leaves no room for answers
                end = ids.index(tokenizer.eos_token_id) + 1
                calls = calls_of(CALL_FORM, tokenizer.decode(ids[: end - 1]))[:MOST]
            numbers.append(len(calls))
            if not calls:
                assert (row["round"], row["injected"], row["replaced"], answers) == (
                    1,
                    0,
                    False,
                    [],
                )
                assert end == len(ids)
                continue
            assert (row["round"], row["replaced"], row["level"]) == (3, True, 0)
            assert len(ids) > end + row["injected"]
            said = tokenizer.decode(ids[end : end + row["injected"]])
            form = "".join(f"{re.escape(call)}=([0-9]*);" for call in calls)
            found = re.fullmatch(form, said)
            told = list(zip(calls, found.groups(), strict=True))
            learned = [(a["context"].removesuffix("=?"), answer_of(a)) for a in answers]
            assert len(learned) == D
            assert set(learned) <= set(told)
            assert len(calls) > D or set(told) == set(learned)
            assert {(a["round"], a["level"], a["role"]) for a in answers} == {(2, k + 1, "sub")}
    assert {0, 1, 2} <= set(numbers), "the run has no case of what is to be seen"


def test_a_sub_agent_is_paid_by_form_outcome_and_expert(whole):
    mains, subs = of_prompts(whole)
    for at, answers in subs.items():
        rewards = []
        for i, answer in answers.items():
            call = answer["context"].removesuffix("=?")
            right = mains[at][i // D]["rewards"]["tagged_number"]
            (expert,) = sum_match(prompts=[call], completions=[answer["completion"]])
            formed = bool(answer_of(answer))
            paid = 0.1 + 0.5 * right + 0.4 * expert if formed else 0.0
            assert answer["reward"] == pytest.approx(paid, abs=1e-6)
            rewards.append(answer["reward"])
        if np.ptp(rewards) > 0:
            expected = (rewards - np.mean(rewards)) / (np.std(rewards) + 1e-6)
            found = [answer["advantage"] for answer in answers.values()]
            np.testing.assert_allclose(found, expected, atol=1e-3)


def test_metrics_say_how_calls_fare(whole):
    for row in metrics(whole):
        # Those of the sub-agent are among these: it is trained under what it has read.
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
        drawn = [r for r in sample_rows(whole, row["step"]) if r["role"]]
        assert row["role/sub/updates"] == 1
        assert np.isfinite(row["role/sub/loss"])
        assert row["call/reward_mean"] == pytest.approx(np.mean([r["reward"] for r in drawn]))
        assert row["call/judged_fraction"] == 1
        callers = len(drawn) / D
        assert row["plan/replaced_fraction"] == pytest.approx(callers / (PROMPTS * K))
        dropped = row["call/dropped_fraction"] * row["call/mean"] * PROMPTS * K
        copies = row["call/duplicated_fraction"] * D * callers
        asked = row["call/mean"] * PROMPTS * K
        assert asked - dropped + copies == pytest.approx(D * callers)
    assert max(row["role/sub/grad_norm"] for row in metrics(whole)) > 0
    assert max(row["call/duplicated_fraction"] for row in metrics(whole)) > 0


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_both_policies_learn(whole):
    one = leaves(whole, 3)
    words = [*SMALL, *MGRPO, "run.dir=unused"]
    with contextlib.closing(assemble(config_io.load(QUICKSTART, words))) as begun:
        before = np.asarray(begun.model.params["final_norm"])
    weights = [one["params.final_norm"], one["aux.roles.sub.params.final_norm"]]
    assert all(np.any(weight != before) for weight in weights)
    assert np.any(weights[0] != weights[1])
    moments = [name for name in one if re.match(r"aux\.roles\.sub\.opt_state\..*\.q$", name)]
    assert len(moments) == 2
    assert all(np.any(one[name]) for name in moments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.sampler=dynamic"], r"method.sampler.*must be 'uniform' with plan 'delegate'"),
        (["method.control=diversity"], r"method.control.*must be 'constant' with plan 'delegate'"),
        (["rollout.lag=1"], r"rollout.lag.*must be 0 with plan 'delegate'"),
        (["calls.experts=[]"], r"calls.experts.*must list what judges the answers .* got nothing"),
        (["method.sub_expert_weight=0"], r"calls.experts.*must be empty.*got sum_match"),
        (["method.plan=uniform"], r"calls.experts.*must be empty with plan 'uniform'"),
        (["calls.experts=[{name: sum_macht}]"], r"calls.experts.0.name.*sum_match"),
        (["reward.functions=[{name: tagged_number}]"], r"reward.functions.*must list 2 rewards"),
        (["method.calls=4"], r"calls_max.*must be at least calls = 4, got 3"),
        (['calls.form="(x"'], r"calls.form.*must be a regular expression"),
        (['calls.answer_form="x"'], r"calls.answer_form.*must have a group, the answer"),
        (['calls.main="x"'], r"calls.main.*must contain \{prompt\}"),
        (['calls.sub="x"'], r"calls.sub.*must contain \{call\}"),
        (['calls.answered="x"'], r"calls.answered.*must contain \{answer\}"),
    ],
)
def test_what_cannot_be_delegated_is_refused(words, message):
    with pytest.raises(config_io.ConfigError, match=message):
        config_io.load(QUICKSTART, [*SMALL, *MGRPO, *words])
