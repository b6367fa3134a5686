import importlib.util
from pathlib import Path

import pytest

from jgrpo.config import LogConfig
from jgrpo.loggers import open_sinks


def test_no_tracker_by_default(tmp_path: Path):
    assert open_sinks(LogConfig(), tmp_path, {}, finished_steps=0) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_missing_package_names_the_extra(tmp_path: Path, name: str):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    log = LogConfig(wandb_project="p") if name == "wandb" else LogConfig(trackio_project="p")
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'jgrpo\[{name}\]'") as caught:
        open_sinks(log, tmp_path, {}, finished_steps=0)
    assert f"log.{name}_project" in str(caught.value)


def test_tensorboard_file_holds_the_scalars(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    (sink,) = open_sinks(LogConfig(tensorboard=True), tmp_path, {}, finished_steps=0)
    sink.write(4, {"reward/mean": 0.5, "loss/total": float("nan")})
    sink.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"reward/mean" in content
    assert b"loss/total" not in content  # a number that is not finite has no point on the curve


def test_unlisted_metric_is_refused_by_a_tracker_too(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    (sink,) = open_sinks(LogConfig(tensorboard=True), tmp_path, {}, finished_steps=0)
    with pytest.raises(ValueError, match="no row"):
        sink.write(0, {"mystery/value": 1.0})
    sink.close()
