"""Runs with a library of skills: chosen by the policy, paid, made of what it has drawn."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from quickstart_runs import ROUNDING, SMALL, leaves, metrics, run, samples
from stateful_methods import ARISE, QUICKSTART, SEEDS, skills
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from jgrpo import config_io
from jgrpo.algo.skills import arise_ema
from jgrpo.assembly import assemble
from jgrpo.choosing import SCORED_TOKENS, chosen_skills, skill_scores
from jgrpo.distilling import TRACE_CHARACTERS
from jgrpo.keys import named_key
from jgrpo.learner.batch import unweighted
from jgrpo.strategy.skills import Shelf, abstract, library_of
from jgrpo.types import Rollouts

KNOWN = set("0123456789+-*/=();#?.,% abcdefghijklmnopqrstuvwxyz\n:^")  # to the embedded model


def shown(text):
    """A text as the embedded model reads it."""
    return "".join(c if c in KNOWN else "<unk>" for c in text)


def by_group(folder, step):
    """The samples of a step, group by group, in the order of the step."""
    rows = [json.loads(line) for line in samples(folder)[step].splitlines()]
    found = {}
    for row in rows:
        found.setdefault(row["prompt_index"], []).append(row)
    return list(found.values())


def library(folder, step):
    state, names = leaves(folder, step), ("text", "utility", "count")
    shelf = Shelf(**{name: np.asarray(state[f"strategy.skills.{name}"]) for name in names})
    return library_of(config_io.load(QUICKSTART, ["run.dir=x", *ARISE]).method, shelf)


@pytest.fixture
def assembled():
    """Makes a run of some settings, which is closed after the test."""
    with contextlib.ExitStack() as stack:
        load = lambda words: config_io.load(QUICKSTART, [*SMALL, *ARISE, "run.dir=unused", *words])  # noqa: E731
        yield lambda *words: stack.enter_context(contextlib.closing(assemble(load(words))))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return skills(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, seeds):
    """Three steps in one go."""
    folder = tmp_path_factory.mktemp("arise")
    run(folder, *ARISE, seeds, "run.steps=3", "checkpoint.every=1", "checkpoint.keep=3")
    return folder


def made_in(groups):
    """The skill of a step: the abstract of the first right completion of the first mixed group."""
    for group in groups:
        rewards = [row["reward"] for row in group]
        if max(rewards) >= 1 > min(rewards):
            trace = next(row["completion"] for row in group if row["reward"] >= 1)
            return abstract(trace[:TRACE_CHARACTERS])
    return None


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_groups_work_with_skills_that_stand_in_their_prompts(whole):
    told = metrics(whole)
    for step, row in enumerate(told):
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["invariant/ratio_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
        groups, levels = by_group(whole, step), []
        cache = library(whole, step).cache if step else ()
        for group in groups:
            ((level, context),) = {(r["level"], r["context"]) for r in group}
            levels.append(level)
            if level:
                text = shown(f"SKILL:{cache[level - 1].text}\n")
                assert context == text + group[0]["prompt"]
            else:
                assert context is None
        assert row["skill/used_fraction"] == pytest.approx(np.mean(np.array(levels) > 0))
    assert told[0]["skill/used_fraction"] == 0  # before skill_start_steps
    assert max(row["skill/used_fraction"] for row in told) > 0
    assert max(row["grad/norm"] for row in told) > 0


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_library_is_what_the_samples_say(whole):
    names, made = [seed["skill_name"] for seed in SEEDS], 0
    before = None
    for step, row in enumerate(metrics(whole)):
        groups, after = by_group(whole, step), library(whole, step + 1)
        new = made_in(groups)
        assert row["skill/made"] == (new is not None)
        assert row["skill/written"] == 0  # the embedded model has no braces
        paid = {}
        for group in groups:
            rewards = np.array([r["reward"] for r in group])
            if level := group[0]["level"]:
                bonus = rewards >= 1
                name = before.cache[level - 1].name
                paid.setdefault(name, []).append((rewards + bonus).mean())
        if new is not None and new.name not in names:
            names.append(new.name)
            made += 1
            unaided = next(g for g in groups if made_in([g]))[0]["level"] == 0
            utility = {(True, 0): -1, (False, 0): 0, (True, 1): 0.5, (False, 1): 1}
            (found,) = [s for s in after.cache if s.name == new.name]
            assert (found.text, found.count) == (new.text, 0)
            assert found.utility == utility[unaided, row["skill/verified"]]
        assert [s.name for s in after.cache] == names
        assert after.reservoir == ()
        assert row["skill/library_size"] == len(names)
        for old in before.cache if before else ():
            (now,) = [s for s in after.cache if s.name == old.name]
            mean = np.mean(paid.get(old.name, [0]))
            expected = arise_ema(old.utility, mean) if old.name in paid else old.utility
            assert now.utility == pytest.approx(expected, abs=1e-6)
            assert now.count == old.count + len(paid.get(old.name, []))
        mean = np.mean([s.utility for s in after.cache])
        assert row["skill/utility_mean"] == pytest.approx(mean, abs=1e-6)
        before = after
    assert made == 1
    assert sum(s.count for s in before.cache) > 0


def test_skills_are_scored_by_the_log_probs_of_the_policy(assembled, seeds):
    """Alone behind each prompt they have the scores that they have together, at temperature 1."""
    made = assembled(seeds, "rollout.temperature=0.7")
    learner = made.collector.choose.args[1]
    assert learner.temperature == 1.0
    prompts = made.collector.asking.take(0).tokens
    draw = np.random.default_rng(0)
    skills = [draw.integers(3, 56, n).tolist() for n in (5, SCORED_TOKENS, SCORED_TOKENS + 40)]
    together = skill_scores(learner, 4, made.model.params, prompts, skills)
    for c, skill in enumerate(skills):
        ids = np.array(skill[:SCORED_TOKENS])
        tokens = np.broadcast_to(ids, (len(prompts.uid), 1, len(ids)))
        alone = Rollouts(
            prompts=prompts, tokens=tokens, mask=np.ones(tokens.shape, bool),
            behavior_logp=np.zeros(tokens.shape, np.float32),
            finished=np.ones(tokens.shape[:2], bool),
        )  # fmt: skip
        batch = unweighted(alone, alone.finished)
        found = np.asarray(learner.logps(made.model.params, batch))[:, 0].mean(axis=1)
        np.testing.assert_allclose(together[:, c], found, rtol=1e-5)
    shelf = made.initial_state().strategy["skills"]
    cfg, tokenizer = made.cfg, made.model.tokenizer
    key = named_key(made.root, 1, "choose")
    sure = dataclasses.replace(cfg, method=dataclasses.replace(cfg.method, skill_explore=0.0))
    arguments = (learner, tokenizer, made.model.params, prompts, shelf)
    texts = [skill.text for skill in library_of(cfg.method, shelf).cache]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    best = skill_scores(learner, 4, made.model.params, prompts, ids).argmax(axis=1)
    chosen = chosen_skills(sure, *arguments, 1, key)
    assert [one.number - 1 for one in chosen] == best.tolist()
    assert [one.text for one in chosen] == [texts[c] for c in best]
    assert {one.number for one in chosen_skills(sure, *arguments, 0, key)} == {0}


def test_what_the_policy_writes_as_a_skill_is_taken(assembled):
    """A tokenizer with a skill for every token: whatever is drawn reads as one."""
    made = assembled("method.sampler=uniform")
    state, collector = made.initial_state(), made.collector
    plain = dataclasses.replace(collector, distil=None)
    collected = plain.collect(state.params, 0, 0, state.strategy)
    size = len(made.model.tokenizer)
    seed = SEEDS[0] | {"check": "see"}
    words = [json.dumps(seed | {"skill_name": f"s{i}"}) for i in range(size)]
    vocabulary = {word: i for i, word in enumerate(words)}
    odd = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[2])), unk_token=words[2]
    )
    model = dataclasses.replace(made.model, tokenizer=odd)
    distil = dataclasses.replace(collector.distil, model=model)
    after = distil.distilled(state.params, 0, named_key(made.root, 0), collected)
    assert after.told == {"skill/made": 1, "skill/written": 1, "skill/verified": 0}
    assert json.loads(after.skill.text) in [json.loads(word) for word in words]
    assert after.skill.utility == -1.0  # its group was right without it
    assert after.meter.drawn > collected.meter.drawn
    nothing = dataclasses.replace(
        collected,
        scores=dataclasses.replace(collected.scores, valid=0 * collected.scores.valid > 0),
    )
    assert distil.distilled(state.params, 0, named_key(made.root, 0), nothing).skill is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.plan=uniform"], r"method.plan.*must be 'skill' with shape 'skill_bonus'"),
        (["method=grpo", "data.skills=x"], r"data.skills.*must be '' for method 'grpo'"),
        (["rollout.lag=1"], r"rollout.lag.*must be 0 with plan 'skill'"),
        (["method.allocate=v0"], r"method.allocate.*must be 'uniform' with plan 'skill'"),
        (['context.skill="{prompt}"'], r"context.skill.*must contain \{skill\}"),
        (['context.lesson="{prompt}"'], r"context.lesson.*must contain \{traces\}"),
        (["method.skill_cache=0"], r"skill_cache.*must be at least 1"),
        (
            ["reward.functions=[{name: tagged_number, per: group}]"],
            r"per.*must be 'completion' with plan 'skill'",
        ),
    ],
)
def test_what_a_library_cannot_do_is_refused(words, message):
    with pytest.raises(config_io.ConfigError, match=message):
        config_io.load(QUICKSTART, [*SMALL, *ARISE, "run.dir=x", *words])
