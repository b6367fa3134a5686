"""Experts judge the answer to a call by the call, and may say nothing."""

import numpy as np

from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.rewards.experts import Answer, expert_scores
from jgrpo.rewards.score import build
from jgrpo.types import Example

NOTHING = Task(name="none", train=(), heldout=())
CHAT = Example(prompt=[{"role": "user", "content": "?"}], answer="9")
PLAIN = Example(prompt="61+72-79=?", answer="54", columns={"more": 1})


def test_experts_read_the_call_and_not_the_prompt_that_led_to_it():
    specs = [RewardFunctionConfig(name="sum_match", weight=0.5)]
    experts = build(specs, NOTHING, RewardConfig())
    answers = [
        Answer(PLAIN, "61+72", "#133", [1, 2]),
        Answer(PLAIN, "133-79", "#133", [1]),
        Answer(CHAT, "4+5", "9", [1]),
        Answer(CHAT, "What is 4+5?", "9", [1]),  # no sum: nobody knows
    ]
    np.testing.assert_array_equal(expert_scores(experts, answers), [0.5, 0.0, 0.5, np.nan])
    assert expert_scores(experts, []).shape == (0,)


def test_without_experts_every_answer_is_worth_nothing():
    assert expert_scores((), [Answer(PLAIN, "1+1", "2", [1])] * 2).tolist() == [0.0, 0.0]
