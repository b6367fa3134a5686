"""What transformers computes from an export equals what we compute from the checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import make_run, weights
from small_models import CONFIGS, mesh
from transformers import AutoTokenizer

from jgrpo.export import export
from jgrpo.models.decoder import build, logits, prefill
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Prompts

pytestmark = pytest.mark.parity
FAMILIES = ("tiny", *CONFIGS)
TOLERANCE = 1e-4
TEXTS = ("61+72-79=?", "3+4-5=?")
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def exported(root, tmp_path_factory):
    """Makes an export of step 1 once per family, precision and shard size."""

    @functools.cache
    def make(family, dtype="float32", max_shard_bytes=10**9):
        folder = tmp_path_factory.mktemp(f"{family}-{dtype}")
        source = make_run(root, folder, family, steps=(1,))
        to = folder / "out"
        return export(source, to, dtype=dtype, max_shard_bytes=max_shard_bytes).directory

    return make


def in_transformers(folder):
    """The model, computing in float32 whatever the precision of the file."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def our_logits(family, tokens, dtype="float32"):
    """Logits of the checkpoint's weights, rounded to a precision and computed in float32."""
    arch, params = weights(family, 1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype).astype("float32"), params)
    graphdef, _ = build(arch, dtype="float32")
    tokens = jnp.asarray(tokens, jnp.int32)
    hidden, _ = prefill(graphdef, params, tokens, jnp.ones_like(tokens, bool))
    return np.asarray(logits(params, hidden))


def random_tokens():
    return np.random.default_rng(0).integers(3, 56, (2, 24))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_gives_our_logits_in_transformers(exported, family, max_shard_bytes):
    folder = exported(family, "float32", max_shard_bytes)
    assert (folder / "model.safetensors").exists() == (max_shard_bytes == 10**9)
    expected = our_logits(family, random_tokens())
    found = their_logits(in_transformers(folder), random_tokens())
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["tiny", "qwen3"])
def test_a_rounded_export_gives_the_logits_of_the_rounded_weights(exported, family, dtype):
    """Against the unrounded weights the logits move by rounding alone: 8 or 11 bits of mantissa."""
    found = their_logits(in_transformers(exported(family, dtype)), random_tokens())
    rounded = our_logits(family, random_tokens(), dtype)
    np.testing.assert_allclose(found, rounded, atol=TOLERANCE, rtol=0)
    exact = our_logits(family, random_tokens())
    moved = np.abs(found - exact).max() / np.abs(exact).max()
    assert TOLERANCE < moved < {"bfloat16": 0.1, "float16": 0.01}[dtype]


def our_greedy(family, tokenizer, text):
    arch, params = weights(family, 1)
    graphdef, _ = build(arch, dtype="float32")
    engine = Engine(
        graphdef=graphdef, mesh=mesh(1), tokenizer=tokenizer, eos_ids=(1,), dtype="float32"
    )
    ids = np.array([tokenizer(text).input_ids], np.int32)
    prompts = Prompts(uid=np.zeros(1, np.int32), tokens=ids, mask=np.ones_like(ids, bool))
    rollouts = engine.generate(
        params,
        prompts,
        jax.random.key(0),
        group_size=1,
        max_tokens=MAX_TOKENS,
        sampling=Sampling(temperature=0.0),
    )
    drawn = np.asarray(rollouts.tokens)[0, 0][np.asarray(rollouts.mask)[0, 0]]
    return tokenizer.decode(drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_the_same_in_transformers(exported, family):
    import torch

    folder = exported(family)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), in_transformers(folder)
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        output = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False)
        found = tokenizer.decode(output[0, ids.shape[1] :])
        assert found == our_greedy(family, tokenizer, text)
        if family == "tiny":
            assert "=" in found


def test_transformers_samples_from_the_law_of_training(exported):
    """Without our file it would keep the 50 likeliest of the 56 tokens."""
    settings = in_transformers(exported("qwen3")).generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 1.0, 1.0)
    assert (settings.top_k, settings.eos_token_id, settings.pad_token_id) == (56, 1, 0)


def test_the_file_says_which_precision_it_is_in(exported):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported("qwen3", "bfloat16"))
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.fixture(scope="module", autouse=True)
def _quiet_transformers():
    """Progress bars off; transformers decides on them when it is asked."""
    from transformers.utils import logging

    logging.disable_progress_bar()
