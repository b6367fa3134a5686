"""Random configs and data: whatever comes, the answer is a config, data, or an error of ours."""

import contextlib
import json
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jgrpo import config_io
from jgrpo.config import DataConfig
from jgrpo.config_io import ConfigError
from jgrpo.data.tasks import load_task

ROOT = Path(__file__).parents[2]
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["grpo", "tiny", "chain", "1e-6", "-1", "[", "{a", "0x1F", "~", "yes", "${x}"]
    )
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
quickstart = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
sections = [*quickstart, "method", "reward", "mesh", "checkpoint", "log", "extends", "unknown"]
keys = [key for section in quickstart.values() for key in section] + ["functions", "name", "dir"]


def load(path: Path, overrides: list[str]) -> None:
    try:
        cfg = config_io.load(path, overrides)
    except ConfigError:
        return
    again = path.with_name("again.yaml")
    again.write_text(config_io.dump(cfg), encoding="utf-8")
    assert config_io.load(again) == cfg  # what is accepted survives being written


@SETTINGS
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(sections), st.none() | st.sampled_from(keys), trees), max_size=4
    )
)
def test_random_settings(tmp_path: Path, changes: list):
    tree = json.loads(json.dumps(quickstart))
    for section, key, value in changes:
        if key is not None and isinstance(tree.get(section), dict):
            tree[section][key] = value
        else:
            tree[section] = value
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    load(path, [])


@SETTINGS
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_random_file(tmp_path: Path, content: bytes):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    load(path, [])


@SETTINGS
@given(
    words=st.lists(
        st.text(max_size=20)
        | st.builds("{}.{}={}".format, st.sampled_from(sections), st.sampled_from(keys), scalars),
        max_size=3,
    )
)
def test_random_overrides(words: list[str]):
    with contextlib.suppress(ConfigError):
        config_io.load(ROOT / "configs" / "quickstart.yaml", words)


rows = st.binary(max_size=40) | st.one_of(
    trees.map(lambda tree: json.dumps(tree).encode()),
    st.dictionaries(
        st.sampled_from(["prompt", "answer", "solution", "completions", "x"]), trees
    ).map(lambda row: json.dumps(row).encode()),
)


@SETTINGS
@given(lines=st.lists(rows, max_size=5))
def test_random_data(tmp_path: Path, lines: list[bytes]):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(lines))
    with contextlib.suppress(ValueError):
        task = load_task(DataConfig(task="jsonl", path=str(path)))
        assert len(task.train)
        assert all(example.prompt for example in (*task.train, *task.heldout))
