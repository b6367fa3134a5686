import json
from pathlib import Path

import pytest

from jgrpo.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from jgrpo.folder import claim, locked, read_summary, write_summary


def config(folder: Path, *, data: str = "", model: str = "tiny", **more: object) -> Config:
    return Config(
        model=ModelConfig(path=model),
        data=DataConfig(task="jsonl" if data else "chain", path=data),
        run=RunConfig(dir=str(folder), steps=3),
        **more,
    )


def test_claim_writes_what_the_run_is(tmp_path: Path):
    claim(tmp_path, config(tmp_path), force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "environment.json",
        "inputs.json",
    ]
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert {"jgrpo", "jax", "commit", "devices"} <= facts.keys()


def test_changed_config_is_refused_with_old_and_new_values(tmp_path: Path):
    claim(tmp_path, config(tmp_path), force=False)
    changed = config(tmp_path, optim=OptimConfig(lr=1e-3, clip_norm=0.5))
    with pytest.raises(ValueError, match="holds a run with another config") as error:
        claim(tmp_path, changed, force=False)
    assert "optim.lr: was 1e-06, is 0.001\n" in str(error.value)
    assert "optim.clip_norm: was 1.0, is 0.5\n" in str(error.value)
    assert "--force" in str(error.value)
    claim(tmp_path, changed, force=True)
    claim(tmp_path, changed, force=False)  # now it is the run's


def test_what_no_result_depends_on_may_change(tmp_path: Path):
    claim(tmp_path, config(tmp_path), force=False)
    longer = Config(
        model=ModelConfig(path="tiny"),
        data=DataConfig(task="chain"),
        run=RunConfig(dir=str(tmp_path), steps=30, grace_s=1.0),
    )
    claim(tmp_path, longer, force=False)


def test_changed_data_and_model_files_are_named(tmp_path: Path):
    data, model, folder = tmp_path / "data.jsonl", tmp_path / "model", tmp_path / "run"
    data.write_text('{"prompt": "1+1="}\n')
    model.mkdir()
    (model / "config.json").write_text("{}")
    folder.mkdir()
    cfg = config(folder, data=str(data), model=str(model))
    claim(folder, cfg, force=False)
    claim(folder, cfg, force=False)
    data.write_text('{"prompt": "1+2="}\n')
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="other model or data files") as error:
        claim(folder, cfg, force=False)
    assert f"{data} has changed" in str(error.value)
    assert f"{model / 'tokenizer.json'} is new" in str(error.value)
    assert "config.json" not in str(error.value)
    (model / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is gone"):
        claim(folder, cfg, force=False)
    claim(folder, cfg, force=True)


def test_large_files_are_known_by_size_and_both_ends(tmp_path: Path):
    data, folder = tmp_path / "data.jsonl", tmp_path / "run"
    folder.mkdir()
    with data.open("wb") as file:
        file.truncate(65 * 2**20)
    cfg = config(folder, data=str(data))
    claim(folder, cfg, force=False)
    with data.open("r+b") as file:
        file.seek(-10, 2)
        file.write(b"x")
    with pytest.raises(ValueError, match="has changed"):
        claim(folder, cfg, force=False)


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path):
    with locked(tmp_path / "run"), pytest.raises(BlockingIOError, match=r"in use by pid \d+ on "):
        locked(tmp_path / "run").__enter__()
    with locked(tmp_path / "run"):
        pass


def test_summary_is_read_back(tmp_path: Path):
    assert read_summary(tmp_path) == {}
    write_summary(tmp_path, {"steps": 3})
    assert read_summary(tmp_path) == {"steps": 3}
