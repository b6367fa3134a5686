import numpy as np

from jgrpo.marks import segments, strata
from jgrpo.models.load import tokenizer
from jgrpo.types import Prompts, Rollouts


def rollouts(*texts: str) -> Rollouts:
    ids = [tokenizer("tiny")(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids)) + 1
    tokens, mask = np.zeros((1, len(ids), width), np.int32), np.zeros((1, len(ids), width), bool)
    for g, row in enumerate(ids):
        tokens[0, g, : len(row)] = row
        mask[0, g, : len(row)] = True
    one = np.zeros((1, 1), np.int32)
    return Rollouts(
        prompts=Prompts(uid=one[0], tokens=one, mask=one == 0),
        tokens=tokens,
        mask=mask,
        behavior_logp=np.zeros(tokens.shape, np.float32),
        finished=np.ones((1, len(ids)), bool),
    )


def test_a_segment_ends_with_its_mark():
    found = segments(tokenizer("tiny"), rollouts("1+2=3;#3", ";;4"), ";")
    # the signs of the embedded model are one token each
    assert found[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, -1]
    assert found[0, 1].tolist() == [0, 1, 2, -1, -1, -1, -1, -1, -1]


def test_a_mark_may_span_tokens():
    found = segments(tokenizer("tiny"), rollouts("1=;2==;3"), "=;")
    assert found[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, -1]


def test_stratum_is_the_count_of_the_mark():
    assert strata([["a;b;", ""], [";", "ab"]], ";").tolist() == [[2, 0], [1, 0]]
