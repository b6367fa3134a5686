"""The example of `docs/rewards.md` does what the page says."""

import re

import numpy as np
import pydantic
import yaml

from jgrpo.config import RewardConfig
from jgrpo.data.tasks import Task
from jgrpo.rewards.score import build, close, score


def test_example_of_the_page_runs(root, tmp_path, monkeypatch):
    """The second completion is too long, the third wrong and of the same words as the fourth."""
    page = (root / "docs" / "rewards.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.S)
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    section = yaml.safe_load(settings)["reward"]
    cfg = pydantic.TypeAdapter(RewardConfig).validate_python(section)
    rewards = build(cfg.functions, Task(name="mine", train=(), heldout=()), cfg)
    try:
        result = score(
            rewards,
            prompts=["?"] * 4,
            completions=["it is 4", "x" * 101 + "4", "a b c d e f 5", "f e d c b a 4"],
            completion_ids=[[1]] * 4,
            columns={"answer": ["4"] * 4},
            group_size=2,
        )
    finally:
        close(rewards)
    np.testing.assert_array_equal(result.columns, [[1, 1], [0, 1], [0, 0], [1, 0]])
    assert result.total.tolist() == [np.float32(x) for x in (1.1, 0.1, 0.0, 1.0)]
