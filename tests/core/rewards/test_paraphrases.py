"""Rewards that compare the completions of paraphrases: worked examples, laws, a whole run."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quickstart_runs import metrics, run, samples

from jgrpo.rewards.overlap import answer_overlap, bleu
from jgrpo.rewards.paraphrases import (
    agreement,
    consistency,
    entropy,
    information_consistency,
    paraphrase_agreement,
)

words = st.lists(st.sampled_from("abc"), max_size=6)


def test_worked_example_of_the_agreement():
    table = [[1, 0.2, 0.6, 0.4], [0.2, 1, 0.3, 0.5], [0.6, 0.3, 1, 0.1], [0.4, 0.5, 0.1, 1]]
    np.testing.assert_allclose(agreement(table, [0, 0, 1, 1]), [0.5, 0.4, 0.45, 0.45])
    assert agreement(table, [0, 0, 0, 0]) == [None] * 4


def test_worked_example_of_the_consistency():
    found = consistency([[1, 1.4], [1.2, 1.1], [0.9, 1.3]], (0.8, 1.6), 0.8)
    expected = [[0.531, 0.750], [0.594, 0.531], [0.438, 0.719]]
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert round(entropy(["a", "b", "a", "c"]), 4) == 1.0397


def test_edges_of_the_consistency():
    """Equal bounds: the first term is 0; a single variant is fair."""
    assert consistency([[1.0], [1.0]], (1.0, 1.0), 0.0) == [[0.5], [0.5]]
    assert consistency([[1.2]], (0.8, 1.6), 0.8) == [[pytest.approx(0.75)]]
    assert entropy([]) == entropy("aaa") == 0.0


def test_similarity_by_hand():
    """Unigrams 2/3, bigrams (1 + 1)/(2 + 1), equally long: the root of 4/9."""
    assert bleu(["a", "b", "x"], ["a", "b", "c"], 2) == pytest.approx(2 / 3)
    # Half as long as its reference: exp(1 - 2).
    assert bleu(["a"], ["a", "b"], 1) == pytest.approx(math.exp(-1))
    assert bleu([], ["a"]) == bleu(["a"], []) == bleu(["a"], ["b"]) == 0.0


def test_a_longer_completion_than_the_answer_is_worth_less():
    """Half of the words are there: 1/2; of 12 signs for 8 all 8 are: 8/12 exp(1 - 12/8)."""
    found = answer_overlap(completions=["a x", "a b"], answer=["a b", ""], order=1)
    assert found == [0.5, None]
    (longer,) = answer_overlap(
        completions=["abcdefghzzzz"], answer=["abcdefgh"], unit="sign", order=1
    )
    assert longer == pytest.approx(8 / 12 * math.exp(-0.5))
    assert answer_overlap(completions=["a"], answer=["a b"], order=1) == [1.0]
    assert answer_overlap(completions=[""], answer=["a b"]) == [0.0]


@settings(deadline=None)
@given(words, words, st.integers(1, 4))
def test_similarity_is_from_0_to_1_and_1_for_the_same(one, other, order):
    assert 0.0 <= bleu(one, other, order) <= 1.0 + 1e-12
    if one:
        assert bleu(one, one, order) == pytest.approx(1.0)


def test_only_paraphrases_of_the_same_question_are_compared():
    found = paraphrase_agreement(
        completions=["a b", "c", "a b", "a b", "a b"],
        question=["x", "x", "x", "y", None],
        prompts=["p", "p", "q", "r", "s"],
        order=1,
    )
    assert found == [1.0, 0.0, 0.5, None, None]


def test_entropies_are_compared_place_by_place_within_the_bounds_of_the_question():
    """Entropies 0 and ln 2; ln 2 and ln 2: helpful 0, 1, 1, 1, and unfair by 1, 0, 1, 0."""
    found = information_consistency(
        completions=[""] * 5,
        completion_ids=[[1, 1], [1, 2], [1, 2], [3, 4], [9]],
        question=["x"] * 4 + ["y"],
        prompts=["p", "p", "q", "q", "r"],
    )
    assert found == [pytest.approx(0), 1.0, pytest.approx(0.5), 1.0, None]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 3), min_size=2, max_size=2), min_size=1, max_size=4))
def test_order_of_the_variants_does_not_matter_and_rewards_stay_in_range(entropies):
    low, high = min(map(min, entropies)), max(map(max, entropies))
    found = consistency(entropies, (low, high), high - low)
    turned = consistency(entropies[::-1], (low, high), high - low)
    np.testing.assert_allclose(found, turned[::-1], atol=1e-9)
    assert np.min(found) >= -1e-9
    assert np.max(found) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("method", "reward"),
    [
        ("ps_grpo", "{name: paraphrase_agreement, options: {unit: sign}}"),
        ("info_consistency", "{name: information_consistency}"),
    ],
)
def test_a_run_on_sums_asked_in_two_ways(tmp_path, method, reward):
    """Both ways stand behind each other and are asked in one step, half of which is theirs."""
    rows = []
    for i in range(12):
        for prompt in (f"{i + 3}+{i + 9}=?", f"{i + 9}+{i + 3}=?"):
            rows.append({"prompt": prompt, "answer": str(2 * i + 12), "question": str(i)})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        tmp_path / "run",
        *(f"data.path={path}", f"data.heldout_path={path}", "data.task=jsonl", "data.options={}"),
        *("data.shuffle=false", f"method={method}", "run.steps=3", "eval.num_prompts=4"),
        f"reward.functions=[{{name: tagged_number}}, {reward}]",
    )
    table = metrics(tmp_path / "run")
    assert len(table) == 3
    assert max(row["grad/norm"] for row in table) > 0
    name = reward.split("name: ")[1].split(",")[0].rstrip("}")
    drawn = [json.loads(line) for line in samples(tmp_path / "run")[0].splitlines()]
    values = [row["rewards"][name] for row in drawn]
    assert len({round(value, 6) for value in values}) > 1
    question = {row["prompt"]: row["question"] for row in rows}
    again = {
        "paraphrase_agreement": lambda **given: paraphrase_agreement(**given, unit="sign"),
        "information_consistency": lambda **given: information_consistency(
            **given, completion_ids=[row["completion_ids"] for row in drawn]
        ),
    }[name](
        completions=[row["completion"] for row in drawn],
        question=[question[row["prompt"]] for row in drawn],
        prompts=[row["prompt"] for row in drawn],
    )
    np.testing.assert_allclose(values, again, atol=1e-6)
