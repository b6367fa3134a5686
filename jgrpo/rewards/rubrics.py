"""What completions fail of their rubrics, asked of the judge that rewards them."""

from collections.abc import Sequence

import numpy as np

from jgrpo.rewards.judges import criterion_text
from jgrpo.rewards.reward import Reward
from jgrpo.rewards.score import score
from jgrpo.types import Example

RUBRIC = "judge_rubric"
"""The reward whose judge is asked."""


def unmet(rewards: Sequence[Reward], rows: Sequence[tuple[Example, str]]) -> list[list[str]]:
    """The criteria that each completion fails.

    The judge is asked for one criterion at a time, as isolated as the reward itself. One that it
    fails to judge counts as failed. If it finds that all hold, all are given: that some did not,
    when it was asked for all at once, is why somebody asks.

    Args:
      rewards: of the run, `judge_rubric` among them.
      rows: examples with a rubric, and a completion of each.
    """
    judge = [reward for reward in rewards if reward.name == RUBRIC]
    found = [[criterion_text(c) for c in example.columns["rubric"]] for example, _ in rows]
    asked = [(row, text) for row, texts in zip(rows, found, strict=True) for text in texts]
    scores = score(
        judge,
        prompts=[example.prompt for (example, _), _ in asked],
        completions=[completion for (_, completion), _ in asked],
        completion_ids=[[] for _ in asked],
        columns={"rubric": [[text] for _, text in asked]},
    )
    holds = iter(np.nan_to_num(scores.columns[:, 0], nan=0.0) >= 1.0)
    failed = [[text for text in texts if not next(holds)] for texts in found]
    return [some or texts for some, texts in zip(failed, found, strict=True)]
