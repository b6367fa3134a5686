"""Exports of real runs: what sampled, what goes on training, and what the card tells."""

import json
import re

import jax
import numpy as np
import pytest

from jgrpo import config_io
from jgrpo.export import export
from jgrpo.reopen import reopen
from jgrpo.run import train

SMALL = (
    "data.num_prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=32",
    "eval.num_prompts=8",
    "log.samples_every=1",
    "checkpoint.every=1",
)
TOLERANCE = 2e-4


def run(root, folder, *overrides):
    settings = [*SMALL, f"run.dir={folder}", *overrides]
    return train(config_io.load(root / "configs" / "quickstart.yaml", settings))


def samples(folder, step):
    text = (folder / "samples" / f"step_{step:06d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A run of two steps, its summary, and the export of its first step."""
    folder = tmp_path_factory.mktemp("trained")
    summary = run(root, folder / "run", "run.steps=2")
    return folder / "run", summary, export(folder / "run", folder / "first", step=1).directory


def largest_gap(model_folder, rows, temperature):
    """The largest |log-prob stored - log-prob that transformers computes| of a sampled token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    gaps = []
    for row in rows:
        drawn = row["completion_ids"]
        ids = torch.tensor([[*row["prompt_ids"], *drawn]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
        logp = torch.log_softmax(logits / temperature, -1)[range(len(drawn)), drawn].numpy()
        gaps.append(np.abs(logp - np.array(row["logp"])).max())
    return max(gaps)


def assert_samples_are_of(source, first, temperature):
    rows = samples(source, 1)
    assert len(rows) == 8 * 4
    gap = largest_gap(first, rows, temperature)
    print(f"temperature {temperature}: largest log-prob gap {gap:.1e} nats")
    assert gap <= TOLERANCE
    # The weights after step 2 did not sample them, and it shows.
    later = export(source, first.parent / "second", step=2).directory
    assert largest_gap(later, rows, temperature) > 10 * TOLERANCE


@pytest.mark.parity
def test_transformers_gives_the_log_probs_that_the_sampler_stored(trained):
    source, _, first = trained
    assert_samples_are_of(source, first, 1.0)


@pytest.mark.parity
def test_stored_log_probs_are_at_the_temperature_of_sampling(root, tmp_path):
    more = ("rollout.temperature=0.7", "rollout.top_k=20")
    run(root, tmp_path / "run", "run.steps=2", *more)
    first = export(tmp_path / "run", tmp_path / "first", step=1).directory
    assert_samples_are_of(tmp_path / "run", first, 0.7)
    settings = json.loads((first / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_k"]) == (0.7, 20)


def test_training_goes_on_from_an_export_as_from_the_checkpoint(root, trained, tmp_path):
    source, _, first = trained
    run(root, tmp_path / "next", f"model.path={first}", "run.steps=1")
    opened, params, _, trained_steps = reopen(source, (), 1)
    assert trained_steps == 1
    expected = opened.collector.collect(params, 0, 0, opened.initial_state().strategy).rollouts
    tokens, mask, logp = (
        np.asarray(x)
        for x in jax.device_get((expected.tokens, expected.mask, expected.behavior_logp))
    )
    rows = samples(tmp_path / "next", 0)
    assert len(rows) == mask.shape[0] * mask.shape[1]
    for row, (p, g) in zip(rows, np.ndindex(*mask.shape[:2]), strict=True):
        assert row["completion_ids"] == tokens[p, g][mask[p, g]].tolist()
        np.testing.assert_allclose(row["logp"], logp[p, g][mask[p, g]], atol=1e-5, rtol=0)
    # Not so before the step whose weights were exported.
    assert [row["completion_ids"] for row in rows] != [
        row["completion_ids"] for row in samples(source, 0)
    ]


def test_the_card_of_a_real_run_has_its_numbers(trained):
    source, summary, first = trained
    text = (export(source, first.parent / "last").directory / "README.md").read_text()
    before, after = (summary[name]["greedy_accuracy"] for name in ("eval_before", "eval_after"))
    row = next(line for line in text.splitlines() if line.startswith("| greedy_accuracy"))
    assert [float(x) for x in re.findall(r"\| (\d\.\d+) \(", row)] == [
        pytest.approx(before, abs=5e-4),
        pytest.approx(after, abs=5e-4),
    ]
    environment = json.loads((source / "environment.json").read_text())
    for fact in ("8 held-out prompts", f"jax={environment['jax']}", "`tagged_number`"):
        assert fact in text, fact
    assert environment["commit"] is None or environment["commit"] in text
    assert "These weights were not evaluated" in (first / "README.md").read_text()


@pytest.mark.parity
def test_the_program_of_the_card_runs(trained, monkeypatch, capsys):
    _, _, first = trained
    text = (first / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", text, re.S)
    prompt = samples(trained[0], 0)[0]["prompt"]
    assert program is not None
    assert json.dumps(prompt) in program[1]
    monkeypatch.chdir(first.parent)
    exec(program[1], {})
    printed = capsys.readouterr().out
    assert "=" in printed
