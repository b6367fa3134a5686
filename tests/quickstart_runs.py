"""Short runs of the quickstart on the embedded model, and what they write."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jgrpo import config_io
from jgrpo.run import train

ROOT = Path(__file__).parents[1]
SMALL = (
    "data.num_prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=32",
    "eval.num_prompts=16",
    "log.samples_every=1",
)
# Of log-probs that the sampler and the learner give to one token with the same weights, in nats.
# After one update at the rate of the quickstart they differ by more than .01.
ROUNDING = 1e-3


def run(folder: Path, *overrides: str) -> dict:
    cfg = config_io.load(
        ROOT / "configs" / "quickstart.yaml", [*SMALL, f"run.dir={folder}", *overrides]
    )
    return train(cfg)


def metrics(folder: Path) -> list[dict]:
    """Metrics by step, without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in row.items()
            if not (name.endswith("_s") or "time" in name or "tok_s" in name)
        }
        for row in rows
    ]


def samples(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "samples").iterdir())]


def sample_rows(folder: Path, step: int | None = None) -> list[dict]:
    """The lines of the samples, of one step or of all."""
    found = [json.loads(line) for text in samples(folder) for line in text.splitlines()]
    return [row for row in found if step in (None, row["step"])]


def leaves(folder: Path, step: int) -> dict:
    """What a checkpoint holds, by name, whatever devices it was saved from."""
    reader, path = ocp.PyTreeCheckpointer(), folder / "checkpoints" / str(step)
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    named = reader.metadata(path).item_metadata
    return reader.restore(path, restore_args=jax.tree.map(lambda _: as_numpy, named))
