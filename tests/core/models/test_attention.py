"""Every kernel computes what `layers.attend` defines, values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand
from small_models import VOCAB, learner, mesh, model, off_policy_batch, prompts

from jgrpo.learner.forward import completion_hidden
from jgrpo.models import decoder
from jgrpo.models.attention import Attention, choose, fused_rows, with_prompt
from jgrpo.models.layers import attend
from jgrpo.models.splash import Tree, _kernel

SPLASH = Attention(kernel="splash", interpret=True)


def inputs(*, G, T, Lp, H=4, K=2, E=16, P=2):
    """Queries, keys, values, a prompt padded on the left, and what the output is weighed with."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    real = np.minimum(Lp, 1 + np.arange(P) * 3)
    mask = jnp.asarray(np.arange(Lp)[None] >= Lp - real[:, None])
    prompt = (normal(P, K, Lp, E), normal(P, K, Lp, E), mask)
    q, k, v = normal(P, G, T, H, E), normal(P, G, K, T, E), normal(P, G, K, T, E)
    return q, k, v, prompt, normal(P, G, T, H, E)


def value_and_grads(function, weight, *args):
    total = lambda *args: jnp.sum(weight * function(*args))  # noqa: E731
    return function(*args), jax.grad(total, argnums=range(len(args)))(*args)


@pytest.mark.parametrize(
    ("G", "T", "Lp", "H", "K"),
    [(3, 5, 7, 4, 2), (1, 1, 1, 2, 2), (3, 100, 7, 2, 1), (2, 64, 150, 3, 3)],
)
def test_splash_after_a_prompt_is_attend(G, T, Lp, H, K):
    """Also with several blocks, blocks that are skipped, and queries and keys filled up."""
    q, k, v, (prompt_k, prompt_v, mask), weight = inputs(G=G, T=T, Lp=Lp, H=H, K=K)
    causal = jnp.tril(jnp.ones((T, T), bool))

    def splash(q, k, v, prompt_k, prompt_v):
        return SPLASH.completions(q, k, v, (prompt_k, prompt_v, mask))

    def reference(q, k, v, prompt_k, prompt_v):
        return attend(q, k, v, causal, (prompt_k, prompt_v, mask))

    ours, grads = value_and_grads(splash, weight, q, k, v, prompt_k, prompt_v)
    theirs, expected = value_and_grads(reference, weight, q, k, v, prompt_k, prompt_v)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("T", [6, 150])
def test_splash_of_prompts_is_attend_at_real_tokens(T):
    q, k, v, (_, _, mask), weight = inputs(G=1, T=T, Lp=T)
    weight = weight * mask[:, None, :, None, None]
    visible = jnp.tril(jnp.ones((T, T), bool))[None, None] & mask[:, None, None]
    ours, grads = value_and_grads(lambda *x: SPLASH.prompts(*x, mask), weight, q, k, v)
    theirs, expected = value_and_grads(lambda *x: attend(*x, visible), weight, q, k, v)
    real = np.asarray(mask)[:, None, :]
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5, rtol=1e-5)
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_prompt_of_padding_alone_gives_finite_numbers_and_gradients():
    q, k, v, (prompt_k, prompt_v, mask), weight = inputs(G=2, T=3, Lp=4)
    empty = jnp.zeros_like(mask)
    function = lambda q, k, v: SPLASH.completions(q, k, v, (prompt_k, prompt_v, empty))  # noqa: E731
    for leaf in jax.tree.leaves(value_and_grads(function, weight, q, k, v)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("member", range(3))
def test_tree_shows_a_query_its_prompt_and_its_own_past(member):
    prompt, T = 5, 7
    tree = Tree.padded(prompt=prompt, completion=T, rows=3 * T, blocks=(32, 32))
    seen = tree[:, :]
    for offset in range(T):
        expected = np.zeros(tree.shape[1], bool)
        expected[:prompt] = True
        expected[prompt + member * T : prompt + member * T + offset + 1] = True
        np.testing.assert_array_equal(seen[member * T + offset], expected)


def test_blocks_of_a_tree_are_those_of_the_whole():
    """Three completions of 40 tokens after a prompt of 70; blocks of 32 lie across their ends."""
    tree = Tree.padded(prompt=70, completion=40, rows=120, blocks=(32, 32))
    whole, kinds = tree[:, :], set()
    for top in range(0, tree.shape[0], 32):
        for left in range(0, tree.shape[1], 32):
            where = (slice(top, top + 32), slice(left, left + 32))
            np.testing.assert_array_equal(tree[where], whole[where])
            kinds.add((bool(whole[where].any()), bool(whole[where].all())))
    assert kinds == {(False, False), (True, False), (True, True)}


def test_blocks_of_other_completions_are_skipped():
    """4 completions of a block each after a prompt of a block: a query block visits 2 of 5."""
    tree = Tree.padded(prompt=128, completion=128, rows=512, blocks=(128, 128))
    kernel = _kernel(tree, 1, 128, 128, True)
    np.testing.assert_array_equal((kernel.fwd_mask_info.block_mask > 0).sum(-1), [[2, 2, 2, 2]])
    assert kernel.fwd_mask_info.data_next.shape == (1, 4, 2)
    assert kernel.dkv_mask_info.data_next.shape == (1, 4, 5)  # the prompt is seen by all


@functools.cache
def with_splash(family, where=None):
    arch, _, params = model(family)
    attention = dataclasses.replace(SPLASH, mesh=where)
    graphdef, _ = decoder.build(arch, dtype="float32", attention=attention)
    return graphdef, params


@pytest.mark.parametrize(("family", "remat"), [("llama", "none"), ("qwen3", "full")])
def test_model_with_splash_is_the_model(family, remat):
    graphdef, params = with_splash(family)
    asked = prompts(2, 5)
    tokens = np.random.default_rng(1).integers(3, VOCAB, (2, 3, 6)).astype(np.int32)

    def loss(graphdef, params):
        hidden, *_ = completion_hidden(graphdef, params, asked, tokens, remat=remat)
        return jnp.sum(jnp.sin(hidden))

    ours, grads = jax.value_and_grad(loss, argnums=1)(graphdef, params)
    theirs, expected = jax.value_and_grad(loss, argnums=1)(model(family)[1], params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize(
    ("devices", "fsdp", "tensor"),
    [(4, 2, 1), by_hand(8, 2, 2), by_hand(2, 2, 1), by_hand(2, 1, 2), by_hand(4, 1, 4)],
)
def test_learner_maps_splash_over_the_devices(devices, fsdp, tensor):
    """XLA cannot split the kernel: inside the map over replicas, and without one; two key heads."""
    where = mesh(devices, fsdp, tensor=tensor)
    plain = learner("llama", devices=devices, fsdp=fsdp, tensor=tensor)
    ours = dataclasses.replace(plain, graphdef=with_splash("llama", where)[0])
    batch, params = off_policy_batch(), model("llama")[2]
    theirs_state, theirs = plain.update(plain.init(params), batch)
    state, metrics = ours.update(ours.init(params), batch)
    np.testing.assert_allclose(metrics["loss/total"], theirs["loss/total"], atol=1e-6)
    for got, want in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(theirs_state.params), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("G", [1, 3])
def test_fused_rows_are_attend(G):
    """What cuDNN is asked to compute, computed by XLA."""
    T = 5
    q, k, v, prompt, weight = inputs(G=G, T=T, Lp=7)
    causal = jnp.tril(jnp.ones((T, T), bool))

    def fused(q, k, v, prompt_k, prompt_v):
        rows = with_prompt(k, v, causal, (prompt_k, prompt_v, prompt[2]))
        return fused_rows(q, *rows, implementation="xla")

    def reference(q, k, v, prompt_k, prompt_v):
        return attend(q, k, v, causal, (prompt_k, prompt_v, prompt[2]))

    ours, grads = value_and_grads(fused, weight, q, k, v, *prompt[:2])
    theirs, expected = value_and_grads(reference, weight, q, k, v, *prompt[:2])
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_width", "expected"),
    [
        ("cpu", "float32", 128, "xla"),
        ("tpu", "bfloat16", 128, "splash"),
        ("tpu", "float32", 64, "splash"),
        ("tpu", "bfloat16", 80, "xla"),
        ("gpu", "bfloat16", 128, "cudnn"),
        ("gpu", "float32", 128, "xla"),
        ("gpu", "bfloat16", 256, "xla"),
    ],
)
def test_auto_takes_the_kernel_of_the_platform_where_it_runs(platform, dtype, head_width, expected):
    facts = {"platform": platform, "dtype": dtype, "head_width": head_width}
    assert choose("auto", **facts) == expected
    assert choose("xla", **facts) == "xla"
    for name in {"splash", "cudnn"} - {expected}:
        with pytest.raises(ValueError, match=rf"model\.attention: '{name}'"):
            choose(name, **facts)


def test_refusal_names_the_width():
    with pytest.raises(ValueError, match="head width that 64 divides, the model's is 80"):
        choose("splash", platform="tpu", dtype="bfloat16", head_width=80)
    with pytest.raises(ValueError, match="one of auto, splash, cudnn, xla, got 'flash'"):
        choose("flash", platform="tpu", dtype="bfloat16", head_width=128)
