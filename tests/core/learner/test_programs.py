"""The learner's programs by count: memory, FLOPs, bytes, compiles; never by seconds.

Changed on purpose: `.venv/bin/python tests/learner_programs.py --write`, and say why in the commit.
"""

import json
import os
import re
import subprocess
import sys

import jax
import learner_programs as programs
import numpy as np
import pytest

STORED = json.loads(programs.COUNTS.read_text())
# XLA may fuse a little otherwise on another processor; a lost optimization is far more.
TOLERANCE = 0.05


def same_jax():
    if jax.__version__ != STORED["jax"]:
        pytest.skip(f"counts are of jax {STORED['jax']}: rewrite them for {jax.__version__}")


@pytest.fixture(scope="module")
def counted():
    same_jax()
    return programs.counts()


@pytest.mark.parametrize("name", STORED["programs"])
@pytest.mark.parametrize("quantity", ["flops", "bytes", "peak_bytes"])
def test_update_counts_what_it_did(counted, name, quantity):
    """Both ways: what has become cheaper is written down too, so that it stays."""
    assert counted[name][quantity] == pytest.approx(
        STORED["programs"][name][quantity], rel=TOLERANCE
    )


def test_updates_compile_as_often_as_they_did():
    assert programs.compiles() == STORED["compiles"]


def test_learner_takes_a_quarter_of_the_naive_memory_at_a_large_vocabulary():
    """8 completions of 1,024 tokens, 151,936 ids: all logits alone are 4.6 GiB."""
    found = programs.memory_of_large_vocabulary()
    assert found["naive"] > 8 * 1024 * 151_936 * 4
    assert found["learner"] <= found["naive"] / 4


@pytest.mark.slow
def test_learner_takes_a_quarter_of_the_naive_memory_on_a_tpu():
    """Compiled for a v5e chip; in a process of its own, which may hold libtpu."""
    if "TPU_LIBRARY_PATH" not in os.environ:
        pytest.skip("needs libtpu: see .ci/run")
    done = subprocess.run(
        [sys.executable, programs.__file__, "--v5e"],
        env={**os.environ, "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["learner"] <= found["naive"] / 4


@pytest.mark.parametrize("packing", [False, True])
def test_no_array_of_the_update_has_all_logits(packing):
    """Of 1,024 tokens in chunks of 96, with a vocabulary whose length no other dim has."""
    shape = programs.Shape(layers=2, d_model=32, ffn=64, vocab=617, prompts=4, new_tokens=32)
    learner = programs.build(shape, packing=packing, logp_chunk_tokens=96)
    batch = programs.batch_of(shape, mean_length=6 if packing else None)
    text = programs.compiled_update(learner, batch).as_text()
    dims = [tuple(map(int, found.split(","))) for found in re.findall(r"\w\d+\[([\d,]+)\]", text)]
    rows = [int(np.prod(shape)) // 617 for shape in dims if 617 in shape]
    assert max(rows) <= 96
    whole = programs.build(shape, packing=packing, logp_chunk_tokens=4096)
    text = programs.compiled_update(whole, batch).as_text()
    dims = [tuple(map(int, found.split(","))) for found in re.findall(r"\w\d+\[([\d,]+)\]", text)]
    assert max(int(np.prod(shape)) // 617 for shape in dims if 617 in shape) > 96
