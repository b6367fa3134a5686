"""Runs whose completions begin with parts of worked solutions (G2RPO-A)."""

import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from quickstart_runs import ROOT, ROUNDING, SMALL, metrics, run, samples

from jgrpo import config_io

GUIDED = ["method=g2rpo_a", "method.guidance_tokens=6", "rollout.max_completion_tokens=48"]
GUIDED += ["eval.num_prompts=8"]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for text in samples(folder) for line in text.splitlines()]


def without_guidance(folder: Path) -> list[dict]:
    names = ("guidance/", "tokens/injected", "sampling/wasted_fraction")
    return [{k: v for k, v in row.items() if not k.startswith(names)} for row in metrics(folder)]


def test_a_run_that_guides_nobody_is_grpo_to_the_bit(tmp_path):
    same = ["method.scale_eps=1e-4", *GUIDED[2:], "run.steps=2"]
    run(tmp_path / "plain", "method=grpo", "method.penalty=none", "method.kl_coef=0", *same)
    run(tmp_path / "none", *GUIDED, "method.guided_rows=0", "run.steps=2")
    assert without_guidance(tmp_path / "none") == without_guidance(tmp_path / "plain")
    assert samples(tmp_path / "none") == samples(tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_guided_completions_begin_with_the_solution_and_the_length_follows_accuracy(tmp_path):
    run(tmp_path / "whole", *GUIDED, "run.steps=5")
    table = metrics(tmp_path / "whole")
    used = [row["guidance/tokens"] for row in table]
    assert used[:3] == [6, 6, 6]
    a = [row["guidance/accuracy"] for row in table]
    mean = (a[0] + a[1]) / 2
    expected = 6
    if 0 < a[2] < mean:
        expected = int(6 * (mean / a[2]))
    elif a[2] > mean > 0:
        expected = max(int(6 * (mean / a[2])), 1)
    assert used[3] == used[4] == expected
    state = ocp.PyTreeCheckpointer().restore(tmp_path / "whole" / "checkpoints" / "5")
    assert state["strategy.guidance.tokens"] == expected
    assert [row["guidance/share"] for row in table] == [0.5] * 5  # 2 of 4
    drawn = rows(tmp_path / "whole")
    for row in drawn:
        k = row["injected"]
        assert k == (used[row["step"]] if row["group_index"] < 2 else 0)
        assert row["logp"][:k] == [0.0] * k
        assert len(row["completion_ids"]) <= 48
    for step in range(5):
        groups: dict[int, list[dict]] = {}
        for row in drawn:
            if row["step"] == step:
                groups.setdefault(row["prompt_index"], []).append(row)
        for group in groups.values():
            first, second = (row["completion_ids"][: used[step]] for row in group[:2])
            assert first == second
    table_of = {name: sum(row[name] for row in table) for name in table[0] if "tokens/" in name}
    assert table_of["tokens/injected"] == sum(row["injected"] for row in drawn)
    assert table_of["tokens/completion"] == sum(
        len(row["completion_ids"]) - row["injected"] for row in drawn
    )


def test_guidance_is_trained_or_not(tmp_path):
    # Long enough for numbers: the model writes the first tokens as the solution does.
    same = [*GUIDED, "method.guidance_tokens=20", "run.steps=1"]
    for name, weight in (("trained", 1), ("half", 0.5), ("masked", 0)):
        run(tmp_path / name, *same, f"method.loss_on_injected={weight}")
    assert samples(tmp_path / "trained") == samples(tmp_path / "masked")
    norms = {n: metrics(tmp_path / n)[0]["grad/norm"] for n in ("trained", "masked", "half")}
    assert len(set(norms.values())) == 3
    for name in norms:
        (row,) = metrics(tmp_path / name)
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["invariant/ratio_gap_max"] < ROUNDING
        assert np.isfinite(row["grad/norm"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.guided_rows=5"], r"method.guided_rows.*at most rollout.group_size \(4\)"),
        (["rollout.lag=1"], r"rollout.lag.*must be 0 with plan 'guided'"),
        (["method.source=both"], r"method.source.*must be 'policy' with plan 'guided'"),
    ],
)
def test_what_guidance_cannot_be_combined_with_is_refused(words, message):
    with pytest.raises(config_io.ConfigError, match=message):
        config_io.load(ROOT / "configs" / "quickstart.yaml", [*SMALL, *GUIDED, *words])
