"""The whole loop on the embedded model: it learns, it resumes, and devices do not matter."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from by_hand import by_hand
from one_device import ONE_DEVICE
from quickstart_runs import ROOT, ROUNDING, SMALL, leaves, metrics, run, samples
from stateful_methods import STATEFUL, TWO_REWARDS

from jgrpo import config_io
from jgrpo.algo import METHODS, Choice
from jgrpo.algo.baselines import BASES
from jgrpo.algo.describe import kept
from jgrpo.cli import main
from jgrpo.run import train


@pytest.mark.slow  # a run in two parts, below, is one that was run twice
def test_two_runs_with_one_seed_write_the_same_metrics_and_samples(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, "run.steps=3")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


def test_stopped_after_two_steps_and_continued_equals_a_run_left_alone(tmp_path):
    run(tmp_path / "whole", "run.steps=4")
    run(tmp_path / "parts", "run.steps=2")
    run(tmp_path / "parts", "run.steps=4")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("parts", "whole")
    ]
    assert summaries[0] == summaries[1]


def test_sampled_evaluation_reports_pass_and_majority(tmp_path):
    more = ("eval.samples_per_prompt=4", "rollout.max_completion_tokens=56")
    summary = run(tmp_path, "run.steps=1", *more)
    report = summary["eval_before"]
    assert set(report["pass_at"]) == {"1", "2", "4"}
    assert set(report["maj_at"]) == {"4"}
    assert report["pass_at"]["1"] <= report["pass_at"]["2"] <= report["pass_at"]["4"]
    assert 0.0 < report["maj_at"]["4"] <= report["pass_at"]["4"]


def test_a_finished_run_is_not_trained_further(tmp_path):
    first = run(tmp_path, "run.steps=2")
    assert run(tmp_path, "run.steps=2") == first
    assert len(metrics(tmp_path)) == 2


def test_a_folder_of_another_run_is_refused_by_key(tmp_path):
    run(tmp_path, "run.steps=1")
    with pytest.raises(ValueError, match=r"optim\.lr"):
        run(tmp_path, "run.steps=1", "optim.lr=1e-3")


def test_the_best_checkpoint_stays_and_every_one_is_verified(tmp_path, capsys):
    more = ["eval.every=1", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_best=1"]
    more += ["rollout.max_completion_tokens=56", "optim.lr=3e-2", "run.steps=5"]  # it gets worse
    run(tmp_path, *more)
    scores = [row.get("eval/greedy_accuracy", -1.0) for row in metrics(tmp_path)]
    best = 1 + scores.index(max(scores))
    assert best < 4
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"step {best}: good\nstep 5: good\n"
    manifest = tmp_path / "checkpoints" / "5" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("float32", "float64", 1))
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    assert f"step 5: {manifest}: is damaged" in capsys.readouterr().out


def test_samples_differ_between_steps_and_hold_what_was_drawn(tmp_path):
    run(tmp_path, "run.steps=2")
    rows = [json.loads(line) for text in samples(tmp_path) for line in text.splitlines()]
    assert len(rows) == 2 * 8 * 4
    assert {row["step"] for row in rows} == {0, 1}
    for row in rows:
        assert len(row["completion_ids"]) == len(row["logp"]) <= 32
        assert all(logp <= 0 for logp in row["logp"])
    groups: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for row in rows:
        groups.setdefault((row["step"], row["prompt_index"]), set()).add(
            tuple(row["completion_ids"])
        )
    assert np.mean([len(group) for group in groups.values()]) > 2


def test_invariants_hold_in_every_step(tmp_path):
    run(
        tmp_path,
        "run.steps=2",
        "data.num_prompts_per_step=16",
        "optim.minibatches=2",
        "optim.epochs_per_step=2",
    )
    for row in metrics(tmp_path):
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["invariant/ratio_gap_max"] < ROUNDING
        assert row["optim/updates"] == 4


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"data\.num_prompts_per_step.*8 devices"):
        run(tmp_path / "run", "run.steps=1", "data.num_prompts_per_step=12")
    assert not (tmp_path / "run").exists()


THREE_REWARDS = TWO_REWARDS.replace("}]", "}, {name: number_match}]")
AUTORULE = (
    "reward.functions=[{name: tagged_number}, {name: judge_rules, "
    'options: {judge: rules, rules: "contains: (\\nat most: 1 words\\nmatches: #"}}]'
)
BONUS = ["method.bonus=entropy", "method.entropy_coef=0.01"]
RUBRIC = "reward.functions=[{name: judge_rubric, options: {judge: rules}}]"
ASKED_AGAIN = {  # in the suite, tests/integration/test_round_runs.py trains these
    *("guide_grpo", "scaf_grpo", "cgi", "expo", "igrpo", "s_grpo", "rgr_grpo", "thinktuning"),
    "train_long_think_short",
}
MORE = {
    "sft": ["rollout.group_size=1"],
    "rank_grpo": [TWO_REWARDS, "rollout.segment_mark=';'"],
    "stratified_grpo": ["rollout.stratum_mark=';'"],
    "dapo": ["method.overlong_buffer_tokens=8"],
    "cispo": ["method.overlong_buffer_tokens=8"],
    "gdpo": [TWO_REWARDS],
    "mo_grpo": [TWO_REWARDS],
    "multi_objective_grpo": [TWO_REWARDS],
    "c_grpo": [TWO_REWARDS],
    "autorule": [AUTORULE],
    "format_length": [TWO_REWARDS],
    "posterior_grpo": [THREE_REWARDS],
    "xrpo": ["method.allocation_phases=1"],  # each phase asks for other shapes
    "disco": ["optim.epochs_per_step=2"],
    "reg_grpo": ["optim.epochs_per_step=2"],
    "grpo": BONUS,
    "igrpo": ["reward.functions=[{name: length}]"],  # a draft in its prompt confuses the model
    "train_long_think_short": [TWO_REWARDS],
    "thinktuning": ['context.feedback=";{feedback};"', "method.feedback_tokens=8"],
    "rgr_grpo": ["data.options.rubric=true", RUBRIC],
}


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    "method",
    [by_hand(m) if m in ASKED_AGAIN else m for m in sorted(METHODS.keys() - STATEFUL.keys())],
)
def test_every_method_trains(tmp_path, method, one_device):
    few = ["data.num_prompts_per_step=4", "eval.num_prompts=4", "log.entropy=false"]
    one_shape = ["rollout.max_completion_tokens=48", "rollout.chunk_tokens=48"]
    more = [*few, *one_shape, *MORE.get(method, [])]
    run(tmp_path, "run.steps=3", f"method={method}", *more)
    rows = metrics(tmp_path)
    assert len(rows) == 3
    for row in rows:
        assert np.isfinite([value for value in row.values() if value is not None]).all()
        assert row["optim/skipped_updates"] == 0
        if TWO_REWARDS in MORE.get(method, []):  # every column is logged by its name
            assert {"reward/tagged_number/mean", "reward/regex_format/mean"} <= row.keys()
    assert max(row["grad/norm"] for row in rows) > 0
    # A method that keeps a state belongs to STATEFUL, whose runs are resumed.
    assert not kept(METHODS[method])
    assert not [name for name in leaves(tmp_path, 3) if name.startswith(("strategy.", "aux."))]


def test_only_the_most_uncertain_tokens_are_trained(tmp_path):
    more = ["method.veto=top_entropy", "optim.minibatches=1", "rollout.max_completion_tokens=48"]
    run(tmp_path, "run.steps=2", *more, "eval.num_prompts=8")
    for row in metrics(tmp_path):
        assert 0.2 <= row["veto/factor_mean"] < 0.2 + 1e-2
        assert row["grad/norm"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_passes_the_checks_given_the_rewards_it_compares(method):
    rewards = THREE_REWARDS if method == "posterior_grpo" else TWO_REWARDS
    words = [*SMALL, f"method={method}", "rollout.max_completion_tokens=5000", rewards]
    words += ["rollout.group_size=1"] if method in ("sft", "spo", "ppo_clip") else []
    words += ["method.dual_thresholds=[0.5]"] if method == "fgrpo" else []
    words += ["rollout.stratum_mark=;"] if method == "stratified_grpo" else []
    words += ["model.preference=x"] if method == "ws_grpo" else []
    words += [RUBRIC] if method == "rgr_grpo" else []
    words += ["calls.experts=[{name: sum_match}]"] if method == "m_grpo" else []
    config_io.load(ROOT / "configs" / "quickstart.yaml", words)


def test_what_a_slot_needs_and_no_run_supplies_is_refused_by_name(monkeypatch):
    module = types.ModuleType("my_base")
    given = Choice(function=BASES["none"].function, formula="A0 = R'", needs=("applicable",))
    monkeypatch.setattr(module, "given", given, raising=False)
    monkeypatch.setitem(sys.modules, "my_base", module)
    words = [*SMALL, "method.base=my_base:given"]
    with pytest.raises(config_io.ConfigError, match="needs applicable, which training runs do not"):
        config_io.load(ROOT / "configs" / "quickstart.yaml", words)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_critic_learns(tmp_path):
    ppo = ["method=ppo_clip", "rollout.group_size=1", "rollout.max_completion_tokens=48"]
    ppo += ["eval.num_prompts=8", "optim.minibatches=1"]
    run(tmp_path, "run.steps=4", *ppo)
    state = leaves(tmp_path, 4)
    head = [name for name in state if "value_head.weight" in name]
    assert "aux.value_head.weight" in head
    assert len(head) == 3  # and the optimizer's two moments
    assert all(np.any(state[name]) for name in head)
    rows = metrics(tmp_path)
    assert rows[0]["value/mean"] == 0
    assert rows[3]["value/mean"] != 0


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_single_stream_remembers_each_prompt_and_forgets_by_drift(tmp_path):
    """A task of 20 prompts, 8 a step: the third step meets prompts of the first."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "1+{i}=?", "answer": "{i + 1}"}}\n' for i in range(20)))
    more = [f"data.path={path}", f"data.heldout_path={path}", "data.task=jsonl", "data.options={}"]
    more += ["reward.functions=[{name: tagged_number}]", "rollout.group_size=1", "method=spo"]
    more += ["method.draw=order"]
    run(tmp_path, "run.steps=5", *more)
    assert max(row["grad/norm"] for row in metrics(tmp_path)) > 0
    state = leaves(tmp_path, 5)
    lengths, tracked = state["aux.previous.lengths"], state["strategy.tracker.alpha"]
    assert lengths.shape == tracked.shape == (20,)
    assert (lengths > 0).all()  # 40 draws from epochs of 20
    # alpha + beta <- rho (alpha + beta) + 1: two visits at rho = rho_max would give 2.92 from 1.
    totals = tracked + state["strategy.tracker.beta"]
    assert (totals < 1 + 0.96 * (1 + 0.96) + 1e-6).all()
    assert (totals > 0.875 * (0.875 + 1) + 1 - 1e-6).all()


def test_worked_solutions_stand_beside_the_samples(tmp_path):
    run(tmp_path, "run.steps=1", "method=grao", "rollout.max_completion_tokens=48")
    rows = [json.loads(line) for text in samples(tmp_path) for line in text.splitlines()]
    assert len(rows) == 8 * 5
    groups = [rows[i : i + 5] for i in range(0, len(rows), 5)]
    assert any(group[4]["advantage"] > 0 for group in groups)  # 0 where all samples are right
    for group in groups:
        assert [row["group_index"] for row in group] == [0, 1, 2, 3, 4]
        assert group[4]["reward"] == 1.0  # the solution is right
        assert group[4]["logp"] == [0.0] * len(group[4]["completion_ids"])


def test_dynamic_sampling_ends_when_no_group_is_mixed(tmp_path):
    # One token cannot hold an answer, so every group is all wrong in every round.
    run(
        tmp_path,
        "run.steps=1",
        "method=dapo",
        "method.shape=none",
        "method.dynamic_max_rounds=3",
        "rollout.max_completion_tokens=1",
    )
    (row,) = metrics(tmp_path)
    assert row["sampling/rounds"] == 3
    assert row["sampling/kept_fraction"] == 0
    assert row["plan/drawn_tokens"] == 3 * row["tokens/completion"] == 3 * 8 * 4
    assert row["grad/norm"] == 0


def test_one_device_and_eight_give_the_same_tokens_and_losses(tmp_path):
    # conftest gives this process eight devices; a child with one is the other side.
    run(tmp_path / "eight", "run.steps=5")
    config = str(ROOT / "configs" / "quickstart.yaml")
    subprocess.run(
        [sys.executable, "train.py", config, *SMALL, f"run.dir={tmp_path / 'one'}", "run.steps=5"],
        cwd=ROOT,
        env=ONE_DEVICE,
        check=True,
        timeout=600,
    )
    one, eight = metrics(tmp_path / "one"), metrics(tmp_path / "eight")
    for a, b in zip(one, eight, strict=True):
        assert abs(a["loss/total"] - b["loss/total"]) < 1e-5
        assert a["tokens/completion"] == b["tokens/completion"]
    ids = [
        [
            json.loads(line)["completion_ids"]
            for text in samples(tmp_path / name)
            for line in text.splitlines()
        ]
        for name in ("one", "eight")
    ]
    assert ids[0] == ids[1]


def test_supervised_warm_start_lowers_the_loss(tmp_path):
    cfg = config_io.load(
        ROOT / "configs" / "sft_tiny.yaml",
        [
            f"run.dir={tmp_path}",
            "run.steps=30",
            "eval.num_prompts=8",
            "eval.samples_per_prompt=0",
            "data.num_prompts_per_step=16",
            "optim.warmup_steps=5",
        ],
    )
    train(cfg)
    losses = [row["loss/policy"] for row in metrics(tmp_path)]
    assert losses[-1] < 0.75 * losses[0]
