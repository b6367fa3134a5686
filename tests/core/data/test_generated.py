"""Generated problems: splits cannot overlap, solutions are right, carelessness is as defined."""

import math
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo.config import DataConfig, RewardConfig
from jgrpo.data import chain
from jgrpo.data.draws import below, chance, is_heldout, splitmix64, stream
from jgrpo.data.tasks import load_task
from jgrpo.rewards.score import build, reward_columns, score

SIGNS = set("0123456789+-*/=();#?.,% abcdefghijklmnopqrstuvwxyz")
TASKS = [
    ("chain", {}),
    ("chain", {"min_terms": 2, "max_terms": 5, "carries": "all", "recheck": 0.6}),
    ("overthink", {}),
    ("overthink", {"repeats": 4, "recheck": 1.0, "max_terms": 5}),
    ("gcd", {}),
    ("gcd", {"style": "few_shot", "max_per_answer": 150}),
    ("mod", {}),
    ("mod", {"style": "few_shot", "max_number": 30}),
    ("addition", {}),
    ("addition", {"digits": 2}),
    ("countdown", {}),
    ("countdown", {"style": "chat", "num_numbers": 6}),
]
PLAIN = [
    (name, options) for name, options in TASKS if name != "addition" and "style" not in options
]


_TASKS_MADE = {}


def _fresh(name, options):
    return load_task(DataConfig(task=name, options=options))


def _task(name, options):
    key = f"{name} {options}"
    if key not in _TASKS_MADE:
        _TASKS_MADE[key] = _fresh(name, options)
    return _TASKS_MADE[key]


def _some(source, count=1000):
    return [source[i] for i in range(min(count, len(source)))]


def _problem(name, example):
    """What the example asks, with equivalent questions written alike."""
    numbers = re.findall(r"[0-9]+", str(example.prompt))
    if name in ("gcd", "mod"):
        return tuple(sorted(numbers[-2:]))
    return str(example.prompt) if name in ("chain", "overthink") else tuple(sorted(numbers))


def _scores(task, examples):
    rewards = build((), task, RewardConfig())
    solutions = [example.solution for example in examples]
    result = score(
        rewards,
        prompts=[example.prompt for example in examples],
        completions=solutions,
        completion_ids=[[0]] * len(examples),
        columns=reward_columns(examples, 1),
    )
    return result.total.tolist()


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_train_and_heldout_problems_never_overlap(name, options):
    task = _task(name, options)
    train = {_problem(name, example) for example in _some(task.train, 1500)}
    held = {_problem(name, example) for example in _some(task.heldout)}
    assert train
    assert held
    assert not train & held


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_solution_gets_full_reward_and_has_the_form_of_the_task(name, options):
    task = _task(name, options)
    examples = _some(task.train, 300) + _some(task.heldout, 300)
    assert set(_scores(task, examples)) == {1.0}
    assert task.format_pattern is not None
    for example in examples:
        assert re.fullmatch(task.format_pattern, example.solution), example.solution


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_plain_tasks_use_only_the_signs_of_the_embedded_tokenizer(name, options):
    for example in _some(_task(name, options).train, 300):
        assert set(example.prompt + example.solution) <= SIGNS


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_heldout_problems_are_all_different(name, options):
    held = [str(example.prompt) for example in _some(_task(name, options).heldout)]
    assert len(set(held)) == len(held)


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_problems_are_a_function_of_the_index(name, options):
    first, second = _task(name, options), _fresh(name, options)
    assert [first.train[i] for i in (9, 0)] == [second.train[i] for i in (9, 0)]
    assert list(first.heldout) == list(second.heldout)


def test_problems_are_the_same_on_every_machine():
    """A change here changes every run: splits, prompts and the embedded model's training data."""
    train = _task("chain", {"careless": 0.6, "recheck": 0.6}).train
    assert [(train[i].prompt, train[i].solution) for i in range(3)] == [
        ("30+14+59=?", "30+14=44(44-14=30);44+59=103;#103"),
        ("21+37+36=?", "21+37=58(58-37=21);58+36=84;#84"),
        ("61+75-27=?", "61+75=36(36-75=61);36-27=19(19+27=36);#19"),
    ]


def test_splitmix64_gives_the_published_numbers():
    """The first three for seed 1234567, as implementations in other languages print them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(splitmix64(1234567), 3)) == published


def test_index_outside_the_split_is_an_index_error():
    task = _task("chain", {})
    for index in (-1, len(task.train)):
        with pytest.raises(IndexError, match="index must be in"):
            task.train[index]


def test_chain_answer_is_the_value_and_stays_in_range():
    for example in _some(_task("chain", {"min_terms": 2, "max_terms": 5}).train, 500):
        terms = re.findall(r"[+-]?[0-9]+", example.prompt)
        assert sum(map(int, terms)) == int(example.answer)
        partial = [sum(map(int, terms[: i + 1])) for i in range(len(terms))]
        assert all(0 <= value <= 199 for value in partial)
        assert all(1 <= abs(int(term)) <= 99 for term in terms)
        assert example.columns["num_terms"] == len(terms)
        assert 2 <= len(terms) <= 5


def test_careless_solution_by_hand():
    """61+72: 1+2=3, 6+7=13 -> 3, so 33. 33-79: 3-9 -> 4, 3-7 -> 6, so 64. Checks agree."""
    steps = (chain.Step(1, 72, 1), chain.Step(-1, 79, 2))
    problem = chain.Chain(61, steps)
    assert chain._solution(problem, True, [True, False]) == "61+72=33(33-72=61);33-79=64;#64"
    assert chain._solution(problem, False, [True, True]) == (
        "61+72=133(133-72=61);133-79=54(54+79=133);#54"
    )


def test_a_solution_that_overthinks_by_hand():
    """Worked out twice, the first step checked each time; the answer stands once."""
    problem = chain.Chain(61, (chain.Step(1, 72, 1), chain.Step(-1, 79, 2)))
    assert chain._solution(problem, False, [True, False], 1) == (
        "61+72=133(133-72=61);133-79=54;61+72=133(133-72=61);133-79=54;#54"
    )


def test_overthinking_is_right_and_as_frequent_as_asked():
    """0, 1 or 2 repetitions equally often, a check at 3 steps in 10; longer than chain's twice."""
    examples = _some(_task("overthink", {}).train, 1500)
    assert _scores(_task("overthink", {}), examples) == [1.0] * 1500
    times = [example.solution.split(";").count(_step(example)) for example in examples]
    for count in (1, 2, 3):
        assert times.count(count) / 1500 == pytest.approx(1 / 3, abs=0.04)
    checked = sum("(" in example.solution.split(";")[0] for example in examples)
    assert checked / 1500 == pytest.approx(0.3, abs=0.04)
    plain = _task("chain", {}).train
    needed = [len(plain[i].solution) for i in range(1500)]
    assert sum(len(example.solution) for example in examples) > 2 * sum(needed)
    assert [e.prompt for e in examples[:50]] == [plain[i].prompt for i in range(50)]


def _step(example):
    return example.solution.split(";")[0]


@given(value=st.integers(0, 199), term=st.integers(1, 99))
def test_forgetful_addition_and_subtraction_undo_each_other(value, term):
    there = chain.without_carries(value, 1, term)
    assert 0 <= there <= 199
    assert chain.without_carries(there, -1, term) == value


@given(value=st.integers(0, 199), term=st.integers(1, 99), sign=st.sampled_from([1, -1]))
def test_carries_are_those_that_forgetting_changes(value, term, sign):
    """Digit sums: each carry takes 9 from them, each borrow adds 9."""
    result = value + sign * term
    if not 0 <= result <= 199:
        return

    def digit_sum(number):
        return sum(map(int, str(number)))

    count = sign * (digit_sum(value) + sign * digit_sum(term) - digit_sum(result))
    assert chain.count_carries(value, sign, term) == count // 9
    assert (chain.without_carries(value, sign, term) == result) == (count == 0)


def test_careless_solutions_fail_where_a_carry_is_lost_and_only_there():
    """Two terms: one step, so lost carries cannot cancel out."""
    task = _task("chain", {"min_terms": 2, "max_terms": 2, "careless": 1.0, "recheck": 0.5})
    examples = _some(task.train, 500)
    expected = [float(example.columns["num_carries"] == 0) for example in examples]
    assert _scores(task, examples) == expected
    assert 0 < sum(expected) < 500


def test_answer_of_a_careless_solution_is_still_the_true_one():
    careful, careless = _task("chain", {}), _task("chain", {"careless": 1.0})
    for i in range(200):
        assert careful.train[i].prompt == careless.train[i].prompt
        assert careful.train[i].answer == careless.train[i].answer


def test_careless_and_recheck_are_as_frequent_as_asked():
    """Two terms with a carry, so that the careless solutions are the wrong ones."""
    options = {"careless": 0.6, "recheck": 0.25, "carries": "all", "min_terms": 2, "max_terms": 2}
    examples = _some(_task("chain", options).train, 2000)
    checks = sum("(" in example.solution for example in examples)
    assert sum(_scores(_task("chain", options), examples)) / 2000 == pytest.approx(0.4, abs=0.04)
    assert checks / 2000 == pytest.approx(0.25, abs=0.04)


def test_lost_carries_cancel_out_only_within_a_column():
    """60+72-51: the hundred is carried and borrowed back, so forgetting both is right (81).

    Over 3 terms that saves one careless solution in five of those with a carry.
    """
    assert chain.without_carries(chain.without_carries(60, 1, 72), -1, 51) == 60 + 72 - 51
    task = _task("chain", {"careless": 1.0, "carries": "some"})
    right = sum(_scores(task, _some(task.train, 2000))) / 2000
    assert right == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("carries", "fewest"), [("some", 1), ("all", 3)])
def test_carries_option_filters_problems(carries, fewest):
    task = _task("chain", {"carries": carries, "min_terms": 4, "max_terms": 4})
    found = [example.columns["num_carries"] for example in _some(task.train, 300)]
    assert min(found) == fewest


def test_gcd_solution_is_euclids_algorithm():
    task = _task("gcd", {})
    by_prompt = {e.prompt: e for source in (task.train, task.heldout) for e in source}
    assert by_prompt["gcd(12,18)=?"].solution == "18%12=6;12%6=0;#6"
    assert len(by_prompt) == 98 * 98
    assert all(
        math.gcd(*map(int, re.findall("[0-9]+", prompt))) == int(example.answer)
        for prompt, example in by_prompt.items()
    )


def test_mod_solution_by_hand():
    task = _task("mod", {})
    by_prompt = {e.prompt: e.solution for source in (task.train, task.heldout) for e in source}
    assert by_prompt["17%5=?"] == "3*5=15;17-15=2;#2"


def test_few_shot_prompt_shows_other_numbers_and_no_heldout_answer():
    task = _task("gcd", {"style": "few_shot", "max_number": 30})
    held = {_problem("gcd", example) for example in task.heldout}
    for example in [*task.train, *task.heldout]:
        *shots, asked = example.prompt.split("\n")
        assert re.fullmatch(r"gcd\([0-9]+, [0-9]+\) =", asked)
        assert len(shots) == 3
        numbers = [re.findall("[0-9]+", line) for line in shots]
        assert all(math.gcd(int(a), int(b)) == int(c) for a, b, c in numbers)
        assert not {n for line in numbers for n in line[:2]} & set(re.findall("[0-9]+", asked))
        assert not {tuple(sorted(line[:2])) for line in numbers} & held


def test_max_per_answer_limits_the_pairs_of_each_answer_and_keeps_both_orders():
    def pairs(**options):
        task = _task("gcd", options)
        found = [
            (*map(int, re.findall("[0-9]+", example.prompt)),)
            for example in (*task.train, *task.heldout)
        ]
        assert len(set(found)) == len(found)
        return set(found)

    limited = pairs(max_per_answer=100)
    assert limited == {(b, a) for a, b in limited}
    kept = Counter(math.gcd(a, b) for a, b in limited if a <= b)
    whole = Counter(math.gcd(a, b) for a, b in pairs() if a <= b)
    assert kept == {answer: min(count, 100) for answer, count in whole.items()}
    assert whole[1] > 2500


def test_one_digit_addition_has_a_hundred_prompts_and_holds_out_a_fifth():
    task = _task("addition", {})
    assert len(task.train) + len(task.heldout) == 100
    assert 15 <= len(task.heldout) <= 25
    example = next(e for e in task.train if e.answer == "12")
    assert re.fullmatch(
        r"What is [0-9]\+[0-9]\? Reply with only the number\.", example.prompt[0]["content"]
    )


def test_countdown_steps_lead_to_the_target():
    for example in _some(_task("countdown", {}).train, 300):
        *steps, _ = example.solution.split(";")
        assert steps[-1].endswith(f"={example.columns['target']}")
        assert example.columns["num_steps"] == len(steps)
        assert example.columns["target"] not in example.columns["numbers"]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("chain", {"num_terms": 3}, r"data.options.num_terms: unknown option; did you mean"),
        ("chain", {"max_terms": 6}, r"data.options.max_terms: .*less than or equal to 5, got 6"),
        ("chain", {"min_terms": 4}, r"min_terms must be at most max_terms"),
        ("chain", {"carries": "none"}, r"data.options.carries: .*'any', 'some' or 'all'"),
        ("chain", {"careless": True}, r"data.options.careless"),
        ("gcd", {"max_per_answr": 1}, r"did you mean 'max_per_answer'"),
        ("countdown", {"num_numbers": 7}, r"data.options.num_numbers"),
    ],
)
def test_wrong_option_is_named(task, options, message):
    with pytest.raises(ValueError, match=message):
        _task(task, options)


def test_unknown_task_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"data.task: must be one of chain, .* did you mean 'gcd'"):
        _task("gdc", {})


def test_generated_task_refuses_a_path():
    with pytest.raises(ValueError, match=r"data.path: task 'chain' makes its own problems"):
        load_task(DataConfig(task="chain", path="x.jsonl"))


def test_draws_are_uniform():
    draws = stream("uniform")
    counts = [0] * 10
    for _ in range(20_000):
        counts[below(draws, 10)] += 1
    assert all(abs(count - 2000) < 200 for count in counts)
    assert sum(chance(draws, 0.3) for _ in range(10_000)) == pytest.approx(3000, abs=150)
    assert not any(chance(draws, 0.0) for _ in range(100))
    assert all(chance(draws, 1.0) for _ in range(100))


def test_a_tenth_of_all_texts_is_heldout():
    assert sum(is_heldout(str(i)) for i in range(10_000)) == pytest.approx(1000, abs=100)
