import dataclasses
import json
import logging
import random
import re
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgrpo.checkpoint import Checkpoints, verify, verify_all
from jgrpo.types import TrainState

OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0.0, 10))
)


def make_state(step: int, width: int = 16) -> TrainState:
    noise = np.random.default_rng(step)
    params = {
        "layers": {"q": jnp.asarray(noise.normal(size=(8, width)), jnp.float32)},
        "head": jnp.asarray(noise.normal(size=(3,)), jnp.bfloat16),
    }
    opt_state = OPTIMIZER.init(params)
    grads = jax.tree.map(lambda leaf: leaf * 0.1, params)
    _, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return TrainState(
        step=jnp.int32(step),
        cursor=np.array(7 * step, np.int64),
        params=params,
        opt_state=opt_state,
    )


def assert_same_bits(actual: TrainState, expected: TrainState) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def saved(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    checkpoints = Checkpoints(run_dir, keep=keep)
    for step in steps:
        checkpoints.save(make_state(step))
    checkpoints.close()
    return run_dir / "checkpoints"


def test_round_trip_keeps_every_bit(tmp_path: Path):
    state = make_state(3)
    saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path, keep=1)
    restored = checkpoints.restore_latest(make_state(0))
    checkpoints.close()
    assert restored is not None
    assert_same_bits(restored, state)
    assert isinstance(restored.cursor, np.ndarray)
    assert isinstance(restored.step, jax.Array)
    assert restored.strategy == {}
    assert restored.ref_params is None


def test_eight_devices_and_one_read_each_others_checkpoints(tmp_path: Path):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def place(state: TrainState) -> TrainState:
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf, split if leaf.shape == (8, 16) else replicated),
            dataclasses.replace(state, cursor=jnp.int32(28)),
        )

    one, eight = dataclasses.replace(make_state(4), cursor=jnp.int32(28)), place(make_state(4))
    for name, source, like in (("to_eight", one, place(make_state(0))), ("to_one", eight, one)):
        checkpoints = Checkpoints(tmp_path / name, keep=1)
        checkpoints.save(source)
        checkpoints.wait()
        restored = checkpoints.restore_latest(like)
        checkpoints.close()
        assert restored is not None
        assert_same_bits(restored, one)
        for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
            assert leaf.sharding == wanted.sharding
    assert len(place(make_state(0)).params["layers"]["q"].addressable_shards) == 8


def test_restores_into_shapes_without_content(tmp_path: Path):
    """The same leaf names in a plain dict of abstract arrays, so that nothing is held twice."""
    state = dataclasses.replace(make_state(4), cursor=jnp.int32(28))
    fields = ("step", "cursor", "params", "opt_state")
    like = jax.eval_shape(lambda: {name: getattr(state, name) for name in fields})
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state)
    checkpoints.wait()
    restored = checkpoints.restore(like, step=4)
    checkpoints.close()
    assert_same_bits(TrainState(**restored), state)


def test_state_may_be_donated_while_it_is_saved(tmp_path: Path):
    """The update overwrites the weights in place, right after save has returned."""

    def make() -> TrainState:
        return TrainState(
            step=jnp.int32(1),
            cursor=jnp.int32(0),
            params={"w": jnp.ones((512, 1024))},
            opt_state=optax.EmptyState(),
        )

    state = make()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state)
    # Whether jax overwrites the buffer or, while something still reads it, takes another one, is a
    # matter of timing; what has been saved must not be.
    overwritten = jax.jit(lambda w: w * 0 - 7, donate_argnums=0)(state.params["w"])
    overwritten.block_until_ready()
    checkpoints.wait()
    restored = checkpoints.restore(make(), step=1)
    checkpoints.close()
    assert (np.asarray(restored.params["w"]) == 1).all()


def test_new_run_has_nothing_to_restore(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.restore_latest(make_state(0)) is None
    assert checkpoints.steps() == []
    checkpoints.close()
    assert not list(tmp_path.iterdir())


def test_newest_are_kept(tmp_path: Path):
    folder = saved(tmp_path, 2, 10, 9, 11, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["11", "9"]


def test_same_step_is_saved_once(tmp_path: Path):
    folder = saved(tmp_path, 5)
    before = (folder / "5" / "manifest.json").stat().st_mtime_ns
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(checkpoints.restore(make_state(0), step=5))
    checkpoints.close()
    assert (folder / "5" / "manifest.json").stat().st_mtime_ns == before


def test_unfinished_checkpoint_is_passed_over_and_cleared(tmp_path: Path):
    folder = saved(tmp_path, 3)
    shutil.copytree(folder / "3", folder / "8", ignore=lambda *_: ["manifest.json"])
    (folder / "9.orbax-checkpoint-tmp-12").mkdir()
    (folder / "notes").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=9)
    restored = checkpoints.restore_latest(make_state(0))
    assert restored is not None
    assert int(restored.step) == 3
    checkpoints.save(make_state(4))
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4", "notes"]


def test_flipped_bit_anywhere_is_refused_and_the_older_step_used(tmp_path: Path, caplog):
    folder = saved(tmp_path, 3, 6)
    files = sorted(path for path in (folder / "6").rglob("*") if path.is_file())
    assert len(files) >= 6
    choose = random.Random(0)
    checkpoints = Checkpoints(tmp_path, keep=9)
    for path in files:
        original = path.read_bytes()
        for _ in range(100 if original else 0):
            flipped = bytearray(original)
            flipped[choose.randrange(len(original))] ^= 1 << choose.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=path.name):
                verify(folder / "6")
        caplog.clear()
        if original:
            restored = checkpoints.restore_latest(make_state(0))
            assert restored is not None
            assert int(restored.step) == 3
            (record,) = [entry for entry in caplog.records if entry.name == "jgrpo.checkpoint"]
            assert record.levelno == logging.WARNING
            assert str(path) in record.getMessage()
        path.write_bytes(original)
    verify(folder / "6")
    checkpoints.close()


def _truncate(step: Path) -> str:
    path = max((step / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path}: has"


def _truncate_manifest(step: Path) -> str:
    path = step / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path}: is damaged"


def _lose(step: Path) -> str:
    (step / "_METADATA").unlink()
    return f"{step / '_METADATA'}: is missing"


def _add(step: Path) -> str:
    (step / "d" / "extra").write_bytes(b"x")
    return f"{step / 'd' / 'extra'}: does not belong"


def _swap(step: Path) -> str:
    shutil.rmtree(step)
    shutil.copytree(step.parent / "3", step)
    return f"{step / 'manifest.json'}: is of step 3, not 6"


def _edit(step: Path) -> str:
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["leaves"]["step"]["dtype"] = "int64"
    (step / "manifest.json").write_text(json.dumps(manifest))
    return f"{step / 'manifest.json'}: is damaged"


@pytest.mark.parametrize("harm", [_truncate, _truncate_manifest, _lose, _add, _swap, _edit])
def test_harmed_checkpoint_is_named_and_the_older_one_used(tmp_path: Path, caplog, harm):
    folder = saved(tmp_path, 3, 6)
    fault = harm(folder / "6")
    checkpoints = Checkpoints(tmp_path, keep=1)
    restored = checkpoints.restore_latest(make_state(0))
    assert restored is not None
    assert_same_bits(restored, make_state(3))
    assert fault in caplog.text
    with pytest.raises(ValueError, match=re.escape(fault)):
        checkpoints.restore(make_state(0), step=6)
    checkpoints.save(
        make_state(5)
    )  # the run goes on from 3: what it saves must outlive the damaged
    checkpoints.close()
    assert [path.name for path in folder.iterdir()] == ["5"]


def test_damaged_step_is_written_anew_when_the_run_reaches_it(tmp_path: Path):
    folder = saved(tmp_path, 3, 6)
    _truncate(folder / "6")
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.restore_latest(make_state(0))
    checkpoints.save(make_state(6))
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(make_state(0), step=6), make_state(6))
    checkpoints.close()


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path):
    folder = saved(tmp_path, 3)
    _lose(folder / "3")
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(
        ValueError, match=r"every checkpoint in .* is damaged: .*_METADATA: is miss"
    ):
        checkpoints.restore_latest(make_state(0))
    checkpoints.close()


def test_missing_step_is_named(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(ValueError, match="no finished checkpoint of this step"):
        checkpoints.restore(make_state(0), step=4)
    checkpoints.close()


def test_other_shape_names_the_leaf(tmp_path: Path):
    saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(
        ValueError, match=r"'opt_state.*q' is float32\[8, 16\] .* needs float32\[8, 4\]"
    ):
        checkpoints.restore_latest(make_state(0, width=4))
    checkpoints.close()


def test_absent_leaf_is_named(tmp_path: Path):
    saved(tmp_path, 3)
    like = dataclasses.replace(make_state(0), ref_params={"w": jnp.zeros(2)})
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(ValueError, match=r"'ref_params.w' is absent .* needs float32\[2\]"):
        checkpoints.restore_latest(like)
    checkpoints.close()


# tensorstore drops the errors of the writes that follow the first one
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failed_save_surfaces_and_leaves_the_older_one(tmp_path: Path):
    """A limit on the size of files stands for a full disk."""
    saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path, keep=1)
    state = make_state(4, width=50_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        checkpoints.save(state)
        with pytest.raises(OSError, match=r"checkpoints/4: was not saved: .*File too large"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps() == [3]
    restored = checkpoints.restore_latest(make_state(0))
    assert restored is not None
    assert_same_bits(restored, make_state(3))
    checkpoints.close()


def test_best_stay_besides_the_newest(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2)
    scores: dict[int, float] = {}
    for step, score in enumerate([0.1, 0.9, 0.5, 0.9, 0.2, 0.3], start=1):
        scores[step] = score
        checkpoints.save(make_state(step), scores)
    checkpoints.save(make_state(7), scores)  # not evaluated
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 7]
    checkpoints.close()


def test_save_that_misses_its_deadline_is_named(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1, deadline_s=1e-9)
    checkpoints.save(make_state(1))
    with pytest.raises(TimeoutError, match=r"checkpoints: a save has not finished within 1e-09 s"):
        checkpoints.wait()
    checkpoints.close()


def test_every_checkpoint_of_a_run_is_verified(tmp_path: Path):
    folder = saved(tmp_path, 3, 6)
    assert verify_all(tmp_path) == {3: "", 6: ""}
    fault = _truncate(folder / "3")
    (folder / "6" / "manifest.json").unlink()
    found = verify_all(tmp_path)
    assert fault in found[3]
    assert "there is no finished checkpoint" in found[6]
    with pytest.raises(ValueError, match=r"no checkpoint; is .*empty a run folder"):
        verify_all(tmp_path / "empty")


def test_keep_below_one_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
