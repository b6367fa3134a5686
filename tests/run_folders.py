"""Run folders with checkpoints of known weights, as a short training would leave them."""

import contextlib
import json

import jax
import numpy as np
from small_models import model
from transformers import AutoTokenizer

from jgrpo import config_io
from jgrpo.checkpoint import Checkpoints
from jgrpo.folder import claim, write_summary
from jgrpo.models import hf
from jgrpo.models.architecture import Architecture
from jgrpo.models.decoder import Params
from jgrpo.models.load import load
from jgrpo.types import TrainState

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
REPORT = {
    "num_prompts": 20,
    "samples_per_prompt": 0,
    "greedy_interval": [0.3, 0.7],
    "pass_at": {},
    "pass_at_interval": {},
    "maj_at": {},
    "maj_at_interval": {},
    "length_mean": 8.5,
    "finished_rate": 1.0,
    "format_rate": None,
}


def weights(family: str, step: int) -> tuple[Architecture, Params]:
    """Weights of a step, other ones at each step; family `tiny` is the embedded model."""
    if family == "tiny":
        loaded = load("tiny")
        arch, params = loaded.arch, loaded.params
    else:
        arch, _, params = model(family)
    change = 1.0 + 0.01 * (step - 1)
    return arch, jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(change), params)


def make_run(root, folder, family="qwen3", *, steps=(1, 2), overrides=(), chat_template=None):
    """Writes `folder/run` and the model it began with, `folder/base`; returns the run folder.

    `root` is the checkout, for the embedded tokenizer and the quickstart config.
    """
    arch, params = weights(family, 1)
    tokenizer = AutoTokenizer.from_pretrained(root / "jgrpo" / "assets" / "tiny")
    tokenizer.chat_template = chat_template
    hf.save(folder / "base", arch, params, dtype="float32", tokenizer=tokenizer)
    source = folder / "run"
    settings = [f"model.path={folder / 'base'}", f"run.dir={source}", *overrides]
    source.mkdir(parents=True)
    claim(source, config_io.load(root / "configs" / "quickstart.yaml", settings), force=False)
    with contextlib.closing(Checkpoints(source, keep=len(steps))) as checkpoints:
        for step in steps:
            _, params = weights(family, step)
            moments = jax.tree.map(np.ones_like, params)
            checkpoints.save(
                TrainState(
                    step=np.array(step, np.int32),
                    cursor=np.array(32, np.int32),
                    params=params,
                    opt_state=moments,
                )
            )
    write_summary(
        source,
        {
            "eval_before": {**REPORT, "greedy_accuracy": 0.25},
            "steps": steps[-1],
            "eval_after": {**REPORT, "greedy_accuracy": 0.875},
        },
    )
    rows = [{"step": step - 1, "reward/tagged_number/mean": 0.5} for step in steps]
    (source / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source
