"""Logits and greedy tokens equal those that transformers computed (scripts/make_golden.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import extend_in_order

from jgrpo.models import hf
from jgrpo.models.architecture import FAMILIES
from jgrpo.models.cache import empty_rings
from jgrpo.models.decoder import build, complete, logits, prefill

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
TOLERANCE = 1e-4


def logits_of(directory, tokens):
    """Logits of whole rows: the first 10 tokens as the prompt, the others as the completion."""
    arch = hf.load_architecture(directory)
    params = hf.load_params(directory, arch, "float32")
    graphdef, _ = build(arch, dtype="float32")

    @jax.jit
    def run(params, tokens):
        prompt, completion = tokens[:, :10], tokens[:, None, 10:]
        hidden, cache = prefill(graphdef, params, prompt, jnp.ones_like(prompt, bool))
        rest, _ = complete(graphdef, params, completion, cache)
        return logits(params, jnp.concatenate([hidden, rest[:, 0]], axis=1))

    return np.asarray(run(params, jnp.asarray(tokens, jnp.int32)))


def greedy_of(directory, tokens, count):
    """The most likely token, `count` times, decoded with the cache."""
    arch = hf.load_architecture(directory)
    params = hf.load_params(directory, arch, "float32")
    graphdef, _ = build(arch, dtype="float32")
    tokens = jnp.asarray(tokens, jnp.int32)

    @jax.jit
    def step(params, token, cache, own, offset):
        hidden, own = extend_in_order(graphdef, params, token[:, None], cache, own, offset)
        return logits(params, hidden[:, 0]).argmax(-1), own

    hidden, cache = prefill(graphdef, params, tokens, jnp.ones_like(tokens, bool))
    token = logits(params, hidden[:, -1]).argmax(-1)
    own, drawn = empty_rings(cache, 1, count), [token]
    for offset in range(count - 1):
        token, own = step(params, token, cache, own, jnp.int32(offset))
        drawn.append(token)
    return np.stack(drawn, axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_golden_ones(name):
    golden = np.load(GOLDEN / name / "golden.npz")
    found = logits_of(GOLDEN / name, golden["tokens"])
    print(f"{name}: largest difference {np.abs(found - golden['logits']).max():.1e}")
    assert np.abs(golden["logits"]).max() > 1.0
    np.testing.assert_allclose(found, golden["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_the_golden_ones(name):
    golden = np.load(GOLDEN / name / "golden.npz")
    found = greedy_of(GOLDEN / name, golden["tokens"], golden["greedy"].shape[1])
    np.testing.assert_array_equal(found, golden["greedy"])


def test_every_family_has_a_golden_model():
    families = {hf.load_architecture(GOLDEN / name).family for name in NAMES}
    assert families == set(FAMILIES)
