"""Runs that imitate predictions: these wait in the state, and come back after a restart too."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
from quickstart_runs import ROUNDING, leaves, metrics, run, samples
from small_tokenizers import with_json

from jgrpo import algo, config_io
from jgrpo.config import DataConfig
from jgrpo.data.tasks import load_task

PROMPTS = 8
MASA = [
    "method=masa", "method.plan=my_masa:told", 'context.predict="?{prompt}"', "data.task=jsonl",
    "data.options={}",
    "reward.functions=[{name: tagged_number}]", "rollout.max_completion_tokens=80",
    "rollout.chunk_tokens=80", "eval.num_prompts=4", "optim.packing=false",
    f"data.num_prompts_per_step={PROMPTS}", "rollout.group_size=4",
]  # fmt: skip


def told(m, size, prompts):
    """Plan `predict` with predictions that are given, since the embedded model writes no JSON."""
    both = algo.plan(algo.METHODS["masa"], size, prompts)

    def wants(seen):
        if (found := both.wants(seen)) is None:
            return None
        whole = lambda w: {"begin": "solution", "tokens": int(seen.solutions[w.prompt])}  # noqa: E731
        given = [
            dataclasses.replace(w, **whole(w), drawn=False) if w.context else w for w in found.wants
        ]
        return found._replace(wants=given)

    return dataclasses.replace(both, wants=wants)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Settings of a run in which the notion of every prompt is its tagged answer."""
    module = types.ModuleType("my_masa")
    needs = ("rounds", "solutions", "experts")
    monkeypatch.setattr(
        module, "told", algo.Choice(function=told, formula="", needs=needs), raising=False
    )
    monkeypatch.setitem(sys.modules, "my_masa", module)
    source = load_task(DataConfig(task="chain", options={"carries": "some"})).train
    rows = []
    for i in range(200):
        said = {"math_notion": [f"#{source[i].answer}"], "solution_length": 9, "pass_rate": 8}
        rows.append({"prompt": source[i].prompt, "answer": source[i].answer,
                     "solution": json.dumps(said)})  # fmt: skip
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return [*MASA, f"model.path={with_json(tmp_path / 'tiny')}", f"data.path={path}"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_batch_of_predictions_waits_and_is_imitated(words, tmp_path):
    run(tmp_path / "whole", *words, "run.steps=4")
    run(tmp_path / "parts", *words, "run.steps=2")
    run(tmp_path / "parts", *words, "run.steps=4")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    states = [leaves(tmp_path / name, 4) for name in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    for name, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][name], err_msg=name)
    rows = [json.loads(line) for text in samples(tmp_path / "whole") for line in text.splitlines()]
    stored, batches = 0, 0
    for step, row in enumerate(metrics(tmp_path / "whole")):
        right = {
            r["prompt_index"]
            for r in rows
            if r["step"] == step and r["rewards"]["tagged_number"] == 1
        }
        trained = PROMPTS if stored >= PROMPTS else 0
        stored += len(right) - trained
        batches += trained > 0
        assert (row["expert/trained"], row["expert/stored"]) == (trained, stored)
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
    assert batches
    run(tmp_path / "none", *words, "run.steps=4", "method.expert_coef=0")
    with_them, without = (metrics(tmp_path / name) for name in ("whole", "none"))
    first = [row["expert/trained"] > 0 for row in with_them].index(True)
    for step in range(first + 1):
        norms = with_them[step]["grad/norm"], without[step]["grad/norm"]
        assert (norms[0] == norms[1]) == (step < first)
    assert "expert/stored" not in without[0]


def test_what_predictions_lack_is_refused(words, tmp_path):
    with pytest.raises(config_io.ConfigError, match=r"method.expert_coef.*needs ref_logp"):
        run(tmp_path, *words, "run.steps=1", "method.penalty=k3", "method.kl_coef=0.1")
