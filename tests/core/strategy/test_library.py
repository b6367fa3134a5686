"""Skills as text, the file that a library begins with, and the library as arrays."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jgrpo import algo
from jgrpo.algo.skills import Library, Skill, arise_library
from jgrpo.strategy.skills import (
    WIDTH,
    Shelf,
    abstract,
    fresh,
    library_metrics,
    library_of,
    observed,
    skill_of,
)
from jgrpo.types import Prompts, Rollouts, Standing

ARISE = algo.method("arise", skill_cache=2, skill_reservoir=2, skill_start_steps=3)
GOOD = {"skill_name": "halve_it", "key_insight": "Halve both.", "method": ["One.", "Two."]}


def rollouts(levels, size=2):
    level = np.repeat(np.array(levels)[:, None], size, axis=1)
    shape = (*level.shape, 1)
    nothing = np.zeros(level.shape, bool)
    return Rollouts(
        prompts=Prompts(uid=np.arange(len(level)), tokens=level[:, :1], mask=level[:, :1] >= 0),
        tokens=np.zeros(shape, int),
        mask=np.ones(shape, bool),
        behavior_logp=np.zeros(shape, np.float32),
        finished=~nothing,
        standing=Standing(
            round=level, level=level, ratio=0 * level, likelihood=0.0 * level,
            weight=1.0 + 0 * level, counted=~nothing, replaced=nothing, again=nothing,
        ),
    )  # fmt: skip


def test_a_skill_is_found_in_a_text_and_written_without_blanks():
    found = skill_of(f"Here:\n```json\n{json.dumps(GOOD, indent=2)}\n``` and more }}{{")
    assert found.name == "halve_it"
    assert json.loads(found.text) == GOOD
    assert found.text == json.dumps(GOOD, separators=(",", ":"))
    more = GOOD | {"check": "Put it back.", "problem_type": "algebra", "secret": "gone"}
    assert json.loads(skill_of(json.dumps(more)).text) == {
        name: value for name, value in more.items() if name != "secret"
    }


@pytest.mark.parametrize(
    "said",
    [
        "no object",
        "{not json}",
        "{" * 5000,
        "[1, 2]",
        *(
            json.dumps(GOOD | change)
            for change in (
                {"skill_name": "Halve It"},
                {"skill_name": "a" * 41},
                {"skill_name": 3},
                {"key_insight": ""},
                {"key_insight": ["x"]},
                {"key_insight": "x\x01" * 120},  # short, but not as JSON
                {"key_insight": "\ud800"},
                {"method": ["One."]},
                {"method": ["1", "2", "3", "4"]},
                {"method": ["1", " "]},
                {"method": ["1", 2]},
                {"method": "one, two"},
                {"check": None},
            )
        ),
    ],
)
def test_what_is_no_skill_is_refused(said):
    assert skill_of(said) is None


def test_the_longest_skill_is_taken():
    assert skill_of(json.dumps(GOOD | {"key_insight": "x" * 334})) is not None
    assert skill_of(json.dumps(GOOD | {"key_insight": "x" * 335})) is None


def test_an_abstract_is_a_skill_that_tells_a_completion():
    found = abstract(" 12+3=15;\n#15\x00 ")
    assert json.loads(found.text)["key_insight"] == "Solved so: 12+3=15; #15"
    assert skill_of(found.text) == found
    worst = abstract('"\\' * 400)
    assert skill_of(worst.text) == worst
    assert worst.name == found.name  # a library holds one
    assert abstract(" \n\x00") is None


def test_the_list_of_the_docs_is_one_to_begin_with(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "your_data.md").read_text()
    (listed,) = re.findall(r"```json\n(\[\n.*?\n\])\n```", page, re.S)
    path = tmp_path / "skills.json"
    path.write_text(listed)
    library = library_of(algo.METHODS["arise"], fresh(algo.METHODS["arise"], str(path)))
    assert [json.loads(one.text) for one in library.cache] == json.loads(listed)
    assert {(one.utility, one.count) for one in library.cache} == {(0.0, 0)}
    assert library.reservoir == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        (json.dumps(GOOD), "must hold a list of at most 2 skills.*got dict"),
        (json.dumps([GOOD] * 3), "at most 2 skills.*got 3 of them"),
        (json.dumps([GOOD, GOOD]), "number 2: must be an object.*no other's"),
        (json.dumps([GOOD | {"method": []}]), "number 1: must be an object"),
        (json.dumps(["halve"]), 'number 1: must be an object.*got "halve"'),
    ],
)
def test_a_bad_list_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "skills.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"data\.skills: .*skills\.json.*{message}"):
        fresh(ARISE, str(path))
    with pytest.raises(ValueError, match=r"data\.skills: 'nowhere\.json' cannot be read"):
        fresh(ARISE, "nowhere.json")


def test_a_step_updates_what_was_used_by_what_it_paid():
    """Step 3 is the first with a bonus. Groups of levels 1, 1, 0, 2; one has no valid reward."""
    a, b = (skill_of(json.dumps(GOOD | {"skill_name": name})) for name in "ab")
    shelf = fresh(ARISE, "")
    assert library_of(ARISE, shelf) == Library()
    steps = rollouts([0])
    one, valid = np.ones((1, 2)), np.ones((1, 2), bool)
    for new in (a, b):
        shelf = observed(ARISE, shelf, steps, one, valid, 0, new)
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    valid = np.array([[True] * 2, [True, False], [True] * 2, [False] * 2])
    after = observed(ARISE, shelf, rollouts([1, 1, 0, 2]), rewards, valid, 3, None)
    first, second = library_of(ARISE, after).cache
    assert (first.name, first.count) == ("a", 2)
    assert first.utility == pytest.approx(0.1 * 0.5)  # of means 2 / 2 and 0
    assert (second.utility, second.count) == (0.0, 0)
    early = observed(ARISE, shelf, rollouts([1, 1, 0, 2]), rewards, valid, 2, None)
    assert library_of(ARISE, early).cache[0].utility == pytest.approx(0.1 * 0.25)
    assert library_metrics(after, rollouts([1, 1, 0, 2])) == {
        "skill/used_fraction": 0.75,
        "skill/utility_mean": pytest.approx(0.025),
        "skill/library_size": 2,
    }
    assert library_metrics(fresh(ARISE, ""), steps)["skill/utility_mean"] == 0.0


def test_arrays_hold_a_library_exactly():
    """Also characters beyond the first plane, and a full reservoir."""
    words = ("naïve", "漢字 \u3000", "\U0001d538", "plain")
    skills = [
        skill_of(json.dumps(GOOD | {"skill_name": f"s{i}", "key_insight": word}), utility=i / 7)
        for i, word in enumerate(words)
    ]
    shelf, expected = fresh(ARISE, ""), Library()
    nobody = (rollouts([0]), np.zeros((1, 2)), np.ones((1, 2), bool), 0)
    for new in skills:
        shelf, expected = (
            observed(ARISE, shelf, *nobody, new),
            arise_library(ARISE, expected, {}, new),
        )
    found = library_of(ARISE, shelf)
    for got, want in zip((*found.cache, *found.reservoir), sum(expected, ()), strict=True):
        assert (got.name, got.text, got.count) == (want.name, want.text, want.count)
        assert got.utility == np.float32(want.utility)
    assert (len(found.cache), len(found.reservoir)) == (2, 2)
    assert isinstance(found.cache[0], Skill)
    again = observed(ARISE, shelf, *nobody, None)
    for name in ("text", "utility", "count"):
        np.testing.assert_array_equal(getattr(again, name), getattr(shelf, name))
    assert isinstance(again, Shelf)
    assert again.text.shape == (4, WIDTH)
