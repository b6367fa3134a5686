"""Settings of small runs whose methods keep a state from step to step, and which use it at once."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from quickstart_runs import ROOT
from safetensors.numpy import save_file
from small_tokenizers import with_json

from jgrpo import algo, config_io
from jgrpo.config import DataConfig
from jgrpo.data.tasks import load_task
from jgrpo.learner.preference import UNITS
from jgrpo.preferring import FILE

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
FEW_SHAPES = ["rollout.chunk_tokens=56", "optim.packing=false"]  # compiling is what takes time

# The embedded model knows no tags: the first character of what it writes is the hint, if a step
# follows, and is gone on from. It writes no blanks either, so that an answer never leaks.
HINT_FORM = "^(.).*;"
HILL = [
    "method=hill", "method.hints=3", "rollout.group_size=3", "rollout.max_completion_tokens=56",
    'context.hinter="{draft}{solution}%{prompt}"', f'context.hint_form="{HINT_FORM}"',
    'context.hinted="{prompt}{hint}"', "optim.role_lr=1e-3", "eval.num_prompts=4",
    "data.max_prompt_tokens=48", "data.num_prompts_per_step=16", *FEW_SHAPES,
]  # fmt: skip

# The sums that the embedded model works out are its calls.
CALL_FORM, ANSWER_FORM = "([0-9]+[-][0-9]+)=", "#([0-9]+)$"
MGRPO = [
    "method=m_grpo", "method.calls=2", "method.calls_max=3", "rollout.group_size=4",
    "rollout.max_completion_tokens=96", "rollout.chunk_tokens=96", "eval.num_prompts=4",
    'calls.main="{prompt}"', 'calls.sub="{call}=?"', 'calls.answered="{call}={answer};"',
    f'calls.form="{CALL_FORM}"', f'calls.answer_form="{ANSWER_FORM}"',
    "calls.experts=[{name: sum_match}]",
    "reward.functions=[{name: tagged_number}, "
    '{name: regex_format, options: {pattern: ".*#[0-9]+"}}]',
    "reward.workers=1",
    "optim.role_lr=1e-3", "optim.packing=false", "data.num_prompts_per_step=8",
]  # fmt: skip

SEEDS = [
    {"skill_name": name, "key_insight": f"{name} it", "method": ["say it", "check it"]}
    for name in ("add", "carry")
]
ARISE = [
    "method=arise", "method.skill_start_steps=1", "method.dynamic_max_rounds=2",
    "method.skill_confidence=0.4", "method.skill_explore=0.5", "eval.num_prompts=4",
    "rollout.max_completion_tokens=56", *FEW_SHAPES,
    "data.max_prompt_tokens=256",  # a prompt with its skill is cut to what both of these allow
]  # fmt: skip

MASA = [
    "method=masa", "method.plan=stateful_methods:told", 'context.predict="?{prompt}"',
    "data.task=jsonl", "data.options={}",
    "reward.functions=[{name: tagged_number}]", "rollout.max_completion_tokens=80",
    "rollout.chunk_tokens=80", "eval.num_prompts=4", "optim.packing=false",
    "data.num_prompts_per_step=8", "rollout.group_size=4",
]  # fmt: skip

STOP = [
    "method=ws_grpo", "method.step_low=1", "method.plan=stop", 'context.exit_phrase="#"',
    "rollout.segment_mark=;", "rollout.max_completion_tokens=48", "eval.num_prompts=8",
]  # fmt: skip


def skills(folder: Path) -> str:
    """Writes the skills that a library begins with; the setting that names them."""
    path = folder / "skills.json"
    path.write_text(json.dumps(SEEDS))
    return f"data.skills={path}"


def few_prompts(folder: Path) -> list[str]:
    """Writes sixteen problems of the quickstart, of which the embedded model solves a third.

    Eight are asked in a step, so from the third step on every prompt has been asked before.
    """
    train = load_task(config_io.load(QUICKSTART, ["run.dir=x"]).data).train
    names = ("prompt", "answer", "solution")
    rows = [{name: getattr(train[i], name) for name in names} for i in range(16)]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"data.path={path}", f"data.heldout_path={path}", "data.task=jsonl", "data.options={}",
        "reward.functions=[{name: tagged_number}]", "eval.num_prompts=4",
        "rollout.max_completion_tokens=56",
    ]  # fmt: skip


def preference(folder: Path) -> str:
    """Writes a preference model that has learned nothing; the setting that names it."""
    draw = np.random.default_rng(0)
    shapes = {"in_weight": (96, UNITS), "in_bias": (UNITS,), "out_weight": (UNITS,)}
    drawn = {name: draw.normal(0, 0.2, shape) for name, shape in shapes.items()}
    save_file({name: x.astype(np.float32) for name, x in drawn.items()}, folder / FILE)
    return f"model.preference={folder}"


def predictions(folder: Path) -> list[str]:
    """Writes problems in which the notion of every prompt is its tagged answer."""
    source = load_task(DataConfig(task="chain", options={"carries": "some"})).train
    rows = []
    for i in range(200):
        said = {"math_notion": [f"#{source[i].answer}"], "solution_length": 9, "pass_rate": 8}
        rows.append({"prompt": source[i].prompt, "answer": source[i].answer,
                     "solution": json.dumps(said)})  # fmt: skip
    path = folder / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return [f"model.path={with_json(folder / 'tiny')}", f"data.path={path}"]


def _told(m, size, prompts):
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


told = algo.Choice(function=_told, formula="", needs=("rounds", "solutions", "experts"))

TWO_REWARDS = "reward.functions=[{name: tagged_number}, {name: regex_format}]"
SHORT = ["rollout.max_completion_tokens=48", "eval.num_prompts=4"]
SINGLE = ["rollout.group_size=1", "optim.minibatches=1"]
UNEVEN = ["rollout.group_size=6", "method.prior_noise=0.25"]
STATEFUL = {
    "ppo_clip": [*SHORT, *SINGLE, "optim.epochs_per_step=2"],
    "spo": SINGLE,
    "v0_5": UNEVEN,
    "v0": UNEVEN,
    "knapsack": UNEVEN,
    "fgrpo": [*SHORT, TWO_REWARDS, "method.dual_thresholds=[0.5]", "method.dual_min_samples=1"],
    "masa": MASA,
    "g2rpo_a": [*SHORT, "method.guidance_tokens=6"],
    "hill": HILL,
    "arise": ARISE,
    "m_grpo": MGRPO,
    "ws_preference": [*SHORT, "optim.lr=1e-3"],
    "grpo_care": [*SHORT, "method.ref_every_steps=1", "method.ref_decay=0.5"],
    "ws_grpo": STOP,
    "pairing": [],
    "microcoder_grpo": [
        *SHORT, "rollout.temperature=0.8",
        "method.temperature_every_steps=1", "method.diversity_target=1",
    ],
    "prioritized_replay": [
        "method.replay_start=0", "method.bonus=entropy", "method.entropy_coef=0.01", *FEW_SHAPES,
    ],
}  # fmt: skip
"""Every row of METHODS that keeps a state, with settings under which it does so from step 1."""

_FEW = ("spo", "v0_5", "v0", "knapsack", "pairing", "prioritized_replay")
_FILES = {"masa": predictions, "ws_grpo": preference, "arise": skills} | dict.fromkeys(
    _FEW, few_prompts
)


def settings(method: str, folder: Path) -> list[str]:
    """The settings of a run of a row of `STATEFUL`; what they name is written to a folder."""
    written = _FILES[method](folder) if method in _FILES else []
    more = [written] if isinstance(written, str) else written
    return [*more, f"method={method}", *STATEFUL[method]]
