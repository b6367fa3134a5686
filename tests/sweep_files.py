"""A sweep of two tiny runs, one of which has a model that is nowhere."""

from pathlib import Path

NOWHERE = "/nowhere/at/all"
_SWEEP = """\
base: base.yaml
dir: {folder}/runs
zip:
  optim.lr: [1e-4, 3e-4]
  model.path: [{first}, {second}]
seeds: [1]
"""
_BASE = """\
model: {path: tiny}
data: {task: chain, num_prompts_per_step: 8, max_prompt_tokens: 16}
method: {name: grpo, penalty: none, kl_coef: 0}
rollout: {group_size: 2, max_completion_tokens: 8}
eval: {num_prompts: 4}
run: {dir: unused, steps: 1}
"""


def write_sweep(folder: Path, first: str, second: str) -> Path:
    """Writes the files; the models of the runs in their order."""
    (folder / "base.yaml").write_text(_BASE)
    path = folder / "sweep.yaml"
    path.write_text(_SWEEP.format(folder=folder, first=first, second=second))
    return path
