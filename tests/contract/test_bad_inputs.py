# ruff: noqa: E501 - a row of a table reads best on one line
"""Mistakes of users: each is answered by what was wrong, where, what came and what is allowed.

A row is what goes into a file and the words that the message must have. Config rows go through the
loader and the planner, as `train.py --check` does; the others through what a run calls.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jgrpo import config_io
from jgrpo.config import DataConfig, RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import load_task
from jgrpo.folder import claim, locked
from jgrpo.models.load import architecture, load
from jgrpo.planner import plan
from jgrpo.rewards.score import build, close

GOOD = """\
model:
  path: tiny
data:
  task: chain
  num_prompts_per_step: 8
rollout:
  group_size: 4
  max_completion_tokens: 32
run:
  dir: runs/bad_inputs
  steps: 3
"""


def refuse(call: Callable[[], object], words: tuple[str, ...]) -> None:
    """Expects an error of ours that has all the words."""
    with pytest.raises((ValueError, OSError, ModuleNotFoundError)) as error:
        call()
    message = str(error.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


CONFIGS = {
    # what replaces what in GOOD: (old, new, words of the message)
    "unknown section": ("data:", "daat:", ("daat", "line 3", "did you mean 'data'")),
    "unknown key": ("group_size", "group_sise", ("rollout.group_sise", "line 7", "'group_size'")),
    "key of another section": ("steps: 3", "lr: 3", ("run.lr", "line 11")),
    "missing model": ("model:\n  path: tiny\n", "", ("model",)),
    "missing steps": ("  steps: 3\n", "", ("run.steps", "missing")),
    "text for a number": ("steps: 3", "steps: three", ("run.steps", "line 11", "'three'")),
    "fraction for a count": ("steps: 3", "steps: 2.5", ("run.steps", "line 11", "2.5")),
    "zero steps": ("steps: 3", "steps: 0", ("run.steps", "line 11", "at least 1")),
    "negative group": ("group_size: 4", "group_size: -1", ("rollout.group_size", "line 7", "-1")),
    "true for a count": ("group_size: 4", "group_size: true", ("rollout.group_size", "line 7")),
    "null": ("group_size: 4", "group_size:", ("rollout.group_size", "line 7")),
    "list for a number": ("group_size: 4", "group_size: [4]", ("rollout.group_size", "line 7")),
    "mapping for a number": ("group_size: 4", "group_size: {a: 4}", ("rollout.group_size",)),
    "number for a path": ("path: tiny", "path: 3", ("model.path", "line 2", "3")),
    "section as text": ("model:\n  path: tiny", "model: tiny", ("model", "line 1", "tiny")),
    "duplicate key": ("steps: 3", "steps: 3\n  steps: 4", ("steps", "line 12")),
    "tab": ("  path: tiny", "\tpath: tiny", ("line 2", "\\t")),
    "unclosed bracket": ("steps: 3", "steps: [3", ("line 1",)),
    "yes for a truth value": ("  task: chain", "  task: chain\n  shuffle: yes", ("data.shuffle", "true")),
    "nan": ("  steps: 3", "  steps: 3\noptim:\n  lr: .nan", ("optim.lr", "line 13")),
    "infinite": ("  steps: 3", "  steps: 3\noptim:\n  lr: .inf", ("optim.lr", "line 13")),
    "negative rate": ("  steps: 3", "  steps: 3\noptim:\n  lr: -1e-6", ("optim.lr", "-1e-06")),
    "top_p 0": ("group_size: 4", "top_p: 0.0", ("rollout.top_p", "line 7", "above 0 and at most 1", "0.0")),
    "top_p 2": ("group_size: 4", "top_p: 2.0", ("rollout.top_p", "line 7", "2.0")),
    "min_p": ("group_size: 4", "min_p: 1.5", ("rollout.min_p", "1.5")),
    "temperature": ("group_size: 4", "temperature: -1", ("rollout.temperature", "-1")),
    "unknown schedule": ("  steps: 3", "  steps: 3\noptim:\n  schedule: cos", ("optim.schedule", "'cos'", "cosine")),
    "unknown precision": ("path: tiny", "path: tiny\n  dtype: fp16", ("model.dtype", "'fp16'", "bfloat16")),
    "unknown remat": ("path: tiny", "path: tiny\n  remat: some", ("model.remat", "'some'", "full")),
    "unknown method": ("run:", "method: grpoo\nrun:", ("method", "'grpoo'", "grpo")),
    "unknown slot": ("run:", "method:\n  name: grpo\n  trusst: clip\nrun:", ("method.trusst", "trust")),
    "unknown slot value": ("run:", "method:\n  name: grpo\n  trust: klip\nrun:", ("method.trust", "'klip'")),
    "method constant": ("run:", "method:\n  name: grpo\n  clip_low: -1\nrun:", ("method.clip_low", "-1")),
    "unknown task": ("task: chain", "task: chian", ("data.task", "'chian'", "'chain'")),
    "unknown task option": ("task: chain", "task: chain\n  options: {num_trems: 3}", ("data.options.num_trems", "'min_terms'")),
    "task option": ("task: chain", "task: chain\n  options: {min_terms: 0}", ("data.options.min_terms", "0")),
    "task without files": ("task: chain", "task: chain\n  path: a.jsonl", ("data.path", "line 5", "a.jsonl", "must be empty")),
    "task without its file": ("task: chain", "task: gsm8k", ("data.path", "gsm8k", "''")),
    "columns of a task": ("task: chain", "task: chain\n  columns: {prompt: q}", ("data.columns", "chain")),
    "unknown reward": ("run:", "reward:\n  functions: [{name: nubmer_match}]\nrun:", ("reward.functions", "'nubmer_match'", "number_match")),
    "reward without a name": ("run:", "reward:\n  functions: [{weight: 1}]\nrun:", ("reward.functions", "name")),
    "reward twice": ("run:", "reward:\n  functions: [{name: tagged_number}, {name: tagged_number}]\nrun:", ("reward.functions", "tagged_number", "twice")),
    "mesh too large": ("run:", "mesh: {replica: 3}\nrun:", ("mesh", "3", "8 device(s)")),
    "mesh axis 0": ("run:", "mesh: {replica: 0}\nrun:", ("mesh", "0")),
    "unknown mesh axis": ("run:", "mesh: {modle: 2}\nrun:", ("mesh.modle",)),
    "batch and devices": ("num_prompts_per_step: 8", "num_prompts_per_step: 12", ("data.num_prompts_per_step", "12", "8 devices")),
    "minibatches": ("run:", "optim: {minibatches: 3}\nrun:", ("optim.minibatches", "3")),
    "microbatch": ("run:", "optim: {microbatch_completions: 3}\nrun:", ("optim.microbatch_completions", "3")),
    "too long": ("max_completion_tokens: 32", "max_completion_tokens: 100000", ("max_completion_tokens", "tokens, but", "positions")),
    "one in a group": ("group_size: 4", "group_size: 1", ("rollout.group_size", "1")),
    "base file": ("model:", "extends: nowhere.yaml\nmodel:", ("extends", "nowhere.yaml")),
    "stop strings": ("group_size: 4", "stop: 3", ("rollout.stop", "line 7")),
    "empty file": (GOOD, "", ("model",)),
    "a list": (GOOD, "- 1\n", ("run.yaml", "mapping", "[1]")),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config(tmp_path: Path, name: str):
    old, new, words = CONFIGS[name]
    path = tmp_path / "run.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))

    def check() -> None:
        cfg = config_io.load(path)
        plan(cfg, architecture(cfg.model.path), 8)
        close(build(cfg.reward.functions, load_task(cfg.data), cfg.reward))

    refuse(check, words)


OVERRIDES = {
    "no value": ("optim.lr", ("optim.lr", "key=value")),
    "unknown key": ("optim.lrr=1", ("optim.lrr", "optim.lr")),
    "not YAML": ("optim.lr=[1", ("optim.lr",)),
    "wrong type": ("optim.lr=fast", ("optim.lr", "'fast'")),
    "section": ("optim=3", ("optim", "3")),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_override(tmp_path: Path, name: str):
    override, words = OVERRIDES[name]
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    refuse(lambda: config_io.load(path, [override]), words)


ROWS = {
    "not JSON": ('{"prompt": "a"', ("data.jsonl:2", "not valid JSON")),
    "a list": ("[1]", ("data.jsonl:2", "object", "[1]")),
    "no prompt": ('{"question": "a"}', ("data.jsonl:2", "'prompt'", "question")),
    "empty prompt": ('{"prompt": ""}', ("data.jsonl:2", "'prompt'", "''")),
    "prompt a number": ('{"prompt": 3}', ("data.jsonl:2", "'prompt'", "3")),
    "no messages": ('{"prompt": []}', ("data.jsonl:2", "'prompt'", "[]")),
    "message without role": ('{"prompt": [{"content": "a"}]}', ("data.jsonl:2", "role")),
    "message a text": ('{"prompt": ["a"]}', ("data.jsonl:2", "role", "a")),
    "answer a list": ('{"prompt": "a", "answer": [1]}', ("data.jsonl:2", "'answer'", "[1]")),
    "reserved field": ('{"prompt": "a", "completions": "b"}', ("data.jsonl:2", "'completions'")),
    "an image": (
        '{"prompt": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}',
        ("data.jsonl:2", "image"),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_data_row(tmp_path: Path, name: str):
    row, words = ROWS[name]
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n' + row + "\n")
    refuse(lambda: load_task(DataConfig(task="jsonl", path=str(path))), words)


FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("data.path", "no rows")),
    "not UTF-8": (b'{"prompt": "\xff"}\n', ("data.jsonl", "UTF-8")),
    "compressed": (gzip.compress(b"{}"), ("data.jsonl",)),
}


@pytest.mark.parametrize("name", FILES)
def test_data_file(tmp_path: Path, name: str):
    content, words = FILES[name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    refuse(lambda: load_task(DataConfig(task="jsonl", path=str(path))), words)


REWARDS = {
    "no such module": ("nowhere:f", {}, ("nowhere:f", "import")),
    "no such function": ("json:lods", {}, ("json:lods", "no function 'lods'")),
    "no function": ("json:__name__", {}, ("json:__name__", "no function")),
    "half a path": ("json:", {}, ("json:", "package.module:function")),
    "unknown option": ("number_match", {"wher": "first"}, ("number_match", "'wher'", "'where'")),
    "option value": ("number_match", {"where": "middle"}, ("number_match", "where", "middle")),
    "pattern": ("regex_format", {"pattern": "("}, ("regex_format", "pattern", "'('")),
}


@pytest.mark.parametrize("name", REWARDS)
def test_reward(name: str):
    function, options, words = REWARDS[name]
    spec = RewardFunctionConfig(name=function, options=options)
    task = load_task(DataConfig(task="chain"))
    refuse(lambda: close(build((spec,), task, RewardConfig())), words)


def _model(folder: Path, **files: str) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_json", ".json")).write_text(content)
    return str(folder)


MODELS: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "missing": (lambda p: str(p / "nowhere"), ("nowhere",)),
    "missing GGUF": (lambda p: str(p / "a.gguf"), ("a.gguf",)),
    "empty folder": (lambda p: _model(p / "m"), ("m", "config.json")),
    "config no JSON": (lambda p: _model(p / "m", config_json="{"), ("config.json",)),
    "no model type": (lambda p: _model(p / "m", config_json="{}"), ("model_type",)),
    "unknown family": (
        lambda p: _model(p / "m", config_json=json.dumps({"model_type": "bert"})),
        ("model_type", "bert", "llama"),
    ),
    "no weights": (lambda p: _copy_of_tiny(p / "m", "model.safetensors"), ("safetensors",)),
    "broken weights": (lambda p: _broken_tiny(p / "m"), ("model.safetensors",)),
    "no GGUF inside": (lambda p: _text_file(p / "b.gguf"), ("b.gguf",)),
}


def _copy_of_tiny(folder: Path, without: str = "") -> str:
    folder.mkdir()
    for path in (Path(config_io.__file__).parent / "assets" / "tiny").iterdir():
        if path.name != without and path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def _broken_tiny(folder: Path) -> str:
    path = Path(_copy_of_tiny(folder)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return str(folder)


def _text_file(path: Path) -> str:
    path.write_text("not a model")
    return str(path)


@pytest.mark.parametrize("name", MODELS)
def test_model(tmp_path: Path, name: str):
    make, words = MODELS[name]
    refuse(lambda: load(make(tmp_path), init="weights", seed=0), words)


def test_folders(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    cfg = config_io.load(path)
    (tmp_path / "file").write_text("")
    refuse(lambda: locked(tmp_path / "file").__enter__(), ("file",))
    (tmp_path / "run").mkdir()
    claim(tmp_path / "run", cfg, force=False)
    other = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, seed=5))
    refuse(lambda: claim(tmp_path / "run", other, force=False), ("run.seed", "was 0", "is 5"))
    refuse(lambda: config_io.load(tmp_path / "nowhere.yaml"), ("nowhere.yaml",))
    refuse(lambda: config_io.load(tmp_path), (str(tmp_path),))


def test_there_are_at_least_sixty_bad_inputs():
    assert sum(map(len, (CONFIGS, OVERRIDES, ROWS, FILES, REWARDS, MODELS))) >= 60
