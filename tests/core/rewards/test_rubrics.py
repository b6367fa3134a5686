"""What a completion fails of its rubric, by plain rules."""

from jgrpo.config import DataConfig, RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task, load_task
from jgrpo.rewards.judges import RuleJudge, share
from jgrpo.rewards.rubrics import unmet
from jgrpo.rewards.score import build, close
from jgrpo.types import Example

CRITERIA = [{"text": "contains: red", "weight": 3}, "contains: green", {"text": "contains: blue"}]
NOTHING = Task(name="none", train=(), heldout=())


def failed(rows):
    spec = RewardFunctionConfig(name="judge_rubric", options={"judge": "rules"})
    rewards = build([RewardFunctionConfig(name="length"), spec], NOTHING, RewardConfig(workers=1))
    try:
        return unmet(rewards, rows)
    finally:
        close(rewards)


def test_the_criteria_that_fail_are_told_and_all_where_none_does():
    """The rows of the worked example: [1,0,1], [1,1,0], [0,0,1]; and one that has everything."""
    example = Example(prompt="colours?", columns={"rubric": CRITERIA})
    other = Example(prompt="more?", columns={"rubric": ["contains: red"]})
    rows = [(example, "red blue"), (example, "red green"), (example, "blue"), (other, "green")]
    texts = ["contains: red", "contains: green", "contains: blue"]
    assert failed([*rows, (example, "red green blue")]) == [
        [texts[1]], [texts[2]], texts[:2], [texts[0]], texts,
    ]  # fmt: skip


def test_a_rubric_of_generated_sums_is_met_by_careful_solutions_alone():
    """Careless ones fail a step, and most of them the answer: half of the weight."""
    options = {"rubric": True, "careless": 0.5, "carries": "all"}
    train, scores = load_task(DataConfig(task="chain", options=options)).train, []
    for i in range(20):
        criteria, solution = train[i].columns["rubric"], str(train[i].solution)
        verdicts = RuleJudge().verdicts("", solution, [c["text"] for c in criteria])
        assert verdicts[-1] == solution.endswith(f"#{train[i].answer}")
        scores.append(share(verdicts, [c["weight"] for c in criteria]))
    assert set(scores) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert 5 <= scores.count(1.0) <= 15
    assert min(scores) <= 0.25
    assert "rubric" not in load_task(DataConfig(task="chain")).train[0].columns
