"""Judges: what is asked and read, what happens when the server fails, and rewards built on them."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import serving

from jgrpo import config_io
from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.rewards.endpoint import Endpoint, EndpointError
from jgrpo.rewards.judges import (
    RuleJudge,
    judge_rubric,
    judge_rules,
    judge_score,
    read_score,
    read_verdicts,
    share,
)
from jgrpo.rewards.score import build, close, score

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server():
    with serving(lambda body: f"echo {body['messages'][-1]['content']}") as running:
        yield running


def endpoint(server, **settings):
    settings = {"backoff_s": 0.01, "timeout_s": 2.0, "deadline_s": 5.0} | settings
    return Endpoint(url=server.url, model="m", **settings)


def test_a_request_is_a_chat_at_temperature_0(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "word")
    assert endpoint(server, key_env="MY_KEY", max_tokens=7).ask(HELLO) == "echo hello"
    ((path, body, headers),) = server.asked
    assert path == "/v1/chat/completions"
    assert body == {"model": "m", "messages": HELLO, "temperature": 0, "max_tokens": 7}
    assert headers["Authorization"] == "Bearer word"
    assert endpoint(server).ask(HELLO) == "echo hello"
    assert "Authorization" not in server.asked[1][2]


@pytest.mark.parametrize("failure", [429, 500, 503, "drop", "garbage"])
def test_what_may_pass_is_tried_again(server, failure):
    server.script = [failure, failure]
    assert endpoint(server, retries=2).ask(HELLO) == "echo hello"
    assert len(server.asked) == 3
    server.script = [failure] * 2
    with pytest.raises(EndpointError, match="after 2 tries"):
        endpoint(server, retries=1).ask(HELLO)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_will_not_pass_is_told_at_once(server, status):
    server.script = [status]
    with pytest.raises(EndpointError, match=rf"status {status}: .*echo hello"):
        endpoint(server).ask(HELLO)
    assert len(server.asked) == 1


def test_no_wait_is_longer_than_the_deadline(server):
    """A server that sends a byte now and then never times out by itself."""
    server.script = ["slow"] * 5
    began = time.monotonic()
    with pytest.raises(EndpointError, match="deadline"):
        endpoint(server, deadline_s=0.5).ask(HELLO)
    assert time.monotonic() - began < 3.0
    server.script = [503] * 50
    with pytest.raises(EndpointError, match="503"):
        endpoint(server, deadline_s=0.5, retries=50, backoff_s=0.2).ask(HELLO)
    assert time.monotonic() - began < 6.0


def test_nobody_there_is_an_error_that_names_the_address():
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1"):
        Endpoint(url="http://127.0.0.1:9/v1", model="m", retries=0).ask(HELLO)


def test_an_answer_is_kept_by_content_and_a_damaged_file_is_asked_again(server, tmp_path):
    asked = endpoint(server, cache=str(tmp_path))
    other = endpoint(server, cache=str(tmp_path), max_tokens=9)
    assert [asked.ask(HELLO), asked.ask(HELLO), other.ask(HELLO)] == ["echo hello"] * 3
    assert len(server.asked) == 2  # the other setting is another request
    files = sorted(tmp_path.glob("*/*.json"))
    assert len(files) == 2
    for damage in ("", "{", '{"request": {}, "answer": "wrong"}', "[]"):
        for file in files:
            file.write_text(damage)
        before = len(server.asked)
        assert asked.ask(HELLO) == "echo hello"
        assert len(server.asked) == before + 1
    assert [p.name for p in tmp_path.rglob("*") if p.name.startswith(".")] == []
    server.script = [500] * 9
    assert asked.ask(HELLO) == "echo hello"  # no server is needed for what is known


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("1. yes\n2. no\n3. not applicable", [True, False, True]),
        ("1: Yes.\n 2) TRUE\n- 3 n/a", [True, True, True]),
        ("3. yes\n1. no", [False, False, True]),
        ("1. no\n1. yes\n2. yes", [False, True, False]),
        ("yes, all of them", [False] * 3),
        ("1. not satisfied\n2. satisfied\n7. yes", [False, True, False]),
        ("", [False] * 3),
    ],
)
def test_verdicts_are_read_and_what_is_unreadable_is_not_satisfied(reply, expected):
    assert read_verdicts(reply, 3) == expected


@given(st.text(max_size=60), st.integers(0, 4))
def test_any_reply_gives_a_verdict_for_each_criterion_and_a_score_in_range(reply, count):
    assert len(read_verdicts(reply, count)) == count
    found = read_score(reply)
    assert found is None or 0 <= found <= 1


def test_worked_example_of_the_rubric():
    weights = [3, 2, 1]
    found = [share(sat, weights) for sat in ([1, 0, 1], [1, 1, 0], [0, 0, 1])]
    np.testing.assert_allclose(found, [0.667, 0.833, 0.167], atol=5e-4)
    assert share([True], [0.0]) == 0


RULES = "contains: a\nlacks: z\nat most: 3 words\nends with: !"


@pytest.mark.parametrize(
    ("completion", "model", "expected"),
    [("a b", 0.0, 0.0), ("a b!", 0.3, 2.8), ("z and so much on", 0.0, -5.0)],
)
def test_worked_examples_of_the_rules(completion, model, expected):
    """[1,1,1,0] is worth 0, [1,1,1,1] with .3 of a reward model 2.8, [1,0,0,0] is worth -5."""
    (found,) = judge_rules(prompts=["?"], completions=[completion], rules=RULES, judge="rules")
    assert found is not None
    np.testing.assert_allclose(model + 10 * found, expected, atol=1e-6)


def test_rules_of_the_rule_judge():
    rules = ["matches: ^#\\d+$", "at least: 2 words", "ends with: 4", "be nice"]
    assert RuleJudge().verdicts("?", "#54", rules) == [True, False, True, False]
    assert RuleJudge().score("?", "#54", "contains: 5\ncontains: 6") == 0.5
    assert RuleJudge().score("?", "#54", "") is None


def verdicts_by_length(body):
    """Says yes to the criteria whose number is at most the answer's number of words."""
    words = body["messages"][0]["content"].partition("Answer:\n")[2].partition("\n\n")[0].split()
    return "\n".join(f"{i}. {'yes' if i <= len(words) else 'no'}" for i in range(1, 4))


def test_a_rubric_is_judged_over_http_in_worker_processes(tmp_path):
    """Weights 3, 2, 1: one word is worth 3/6, two 5/6, three all; no rubric, no reward."""
    with serving(verdicts_by_length) as server:
        options = {"url": server.url, "model": "m", "cache": str(tmp_path / "answers")}
        spec = RewardFunctionConfig(name="judge_rubric", options=options)
        cfg = RewardConfig(functions=(spec,), workers=1)
        rewards = build(cfg.functions, Task(name="mine", train=(), heldout=()), cfg)
        rubric = [{"text": "first", "weight": 3}, {"text": "second", "weight": 2}, "third"]
        try:
            for _ in range(2):
                found = score(
                    rewards,
                    prompts=["?", [{"role": "user", "content": "?"}], "?", "?"],
                    completions=["a", "a b", "a b c", "a"],
                    completion_ids=[[1]] * 4,
                    columns={"rubric": [rubric, rubric, rubric, None]},
                )
                np.testing.assert_allclose(found.columns[:, 0], [3 / 6, 5 / 6, 1, np.nan])
        finally:
            close(rewards)
        assert len(server.asked) == 3  # the second time nothing is asked


def test_a_judge_that_fails_is_a_failure_of_the_reward():
    with serving(lambda body: "score: 5") as server:
        server.script = [404]
        options = {"url": server.url, "model": "m"}
        spec = RewardFunctionConfig(name="judge_score", options=options)
        rewards = build((spec,), Task(name="mine", train=(), heldout=()), RewardConfig(workers=1))
        row = {"prompts": ["?"] * 2, "completions": ["a", "b"], "completion_ids": [[1]] * 2}
        try:
            found = score(rewards, **row, columns={})
        finally:
            close(rewards)
    assert sorted(found.valid.tolist()) == [False, True]
    assert found.columns[found.valid, 0].tolist() == [0.5]
    (failure,) = found.failures
    assert failure.kind == "raised"
    assert "status 404" in failure.detail


def test_several_completions_are_judged_at_once_in_their_order():
    with serving(lambda body: f"score: {body['messages'][0]['content'].count('x')}") as server:
        found = judge_score(
            prompts=["?"] * 4,
            completions=["x" * n for n in (4, 0, 2, 9)],
            url=server.url,
            model="m",
            instruction="Count.",
        )
        low = judge_rubric(
            prompts=["?"], completions=["x"], rubric=[["one"]], url=server.url, model="m"
        )
    assert found == [0.4, 0.0, 0.2, 0.9]
    assert low == [0.0]  # "score: 1" is no verdict


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("judge_rubric", {}, "needs url and model"),
        ("judge_score", {"url": "http://x"}, "needs model"),
        ("judge_score", {"url": "x", "model": "m"}, "must begin with http"),
        ("judge_rules", {"judge": "rules"}, "one rule a line"),
        ("judge_rules", {"rules": "@/no/such/file"}, "No such file"),
        ("judge_rules", {"rules": "a", "judge": "human"}, "judge: "),
    ],
)
def test_wrong_options_are_refused_before_the_run(name, options, words):
    spec = RewardFunctionConfig(name=name, options=options)
    with pytest.raises(ValueError, match=words):
        build((spec,), Task(name="mine", train=(), heldout=()), RewardConfig(workers=1))


def test_examples_of_the_page_are_configs(root, tmp_path):
    """Each YAML block of docs/judges.md, on the quickstart."""
    page = (root / "docs" / "judges.md").read_text()
    blocks = page.split("```yaml\n")[1:]
    assert len(blocks) == 4
    for block in blocks:
        text = (root / "configs" / "quickstart.yaml").read_text().split("method:")[0]
        path = tmp_path / "run.yaml"
        path.write_text(f"{text}\nrun: {{dir: x, steps: 1}}\n{block.partition('```')[0]}")
        cfg = config_io.load(path, [])
        assert any(f.name.startswith("judge_") for f in cfg.reward.functions)
        assert json.dumps([dict(f.options) for f in cfg.reward.functions])
