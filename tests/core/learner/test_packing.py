"""A packed batch is learned from as the padded one is, and each completion only sees itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand
from small_models import CONFIGS, VOCAB, learner, model, prompts

from jgrpo import algo
from jgrpo.learner.batch import minibatches, unweighted, with_advantages
from jgrpo.learner.packing import _ROWS, _UNITS, Packed, pack
from jgrpo.models import decoder
from jgrpo.types import Rollouts

P, G, T = 8, 8, 16
GRPO = algo.method("grpo", kl_coef=0.1)
BONUS = algo.method("grpo", kl_coef=0.0, penalty="none", bonus="entropy", entropy_coef=0.1)


def long_tail():
    """Short completions; one long in group 0, all long in 1, none in 2, all of one token in 3."""
    lengths = np.random.default_rng(0).integers(1, 5, (P, G))
    lengths[0, 3] = T
    lengths[1] = T - np.arange(G) % 3
    lengths[2], lengths[3] = 0, 1
    lengths[4, ::2] = 0
    return lengths


def batch_of(lengths, method=GRPO, width=T, prompt_width=5, seed=1):
    """A batch with old log-probs near nothing in particular and advantages of both signs."""
    rng = np.random.default_rng(seed)
    count, size = lengths.shape
    mask = np.arange(width) < lengths[..., None]
    noise = lambda: np.where(mask, -3 + rng.standard_normal(mask.shape), 0).astype(np.float32)  # noqa: E731
    drawn = Rollouts(
        prompts=prompts(count, prompt_width),
        tokens=rng.integers(3, VOCAB, mask.shape).astype(np.int32),
        mask=mask,
        behavior_logp=noise(),
        finished=np.ones((count, size), bool),
    )
    values = jnp.asarray(rng.standard_normal((count, size)), jnp.float32)
    keep = jnp.ones((count, size), bool)
    batch = with_advantages(
        unweighted(drawn, np.ones((count, size), bool)),
        algo.Advantages(values=values, keep=keep),
    )
    batch = minibatches(method, batch, 1, jax.random.key(0))[0]
    return dataclasses.replace(batch, ref_logp=noise()) if method.penalty != "none" else batch


@functools.cache
def batch(method=GRPO):
    return batch_of(long_tail(), method)


def naive_facts(family, params, data):
    """Log-probs and entropies, each completion behind its own copy of the prompt."""
    _, graphdef, _ = model(family)
    rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])  # noqa: E731
    repeat = lambda x: jnp.repeat(jnp.asarray(x), data.tokens.shape[1], axis=0)  # noqa: E731
    tokens = jnp.concatenate([repeat(data.prompts.tokens), rows(data.tokens)], axis=1)
    seen = jnp.concatenate([repeat(data.prompts.mask), rows(data.mask)], axis=1)
    hidden, _ = decoder.prefill(graphdef, params, tokens, seen)
    begin = data.prompts.tokens.shape[1] - 1
    laws = jax.nn.log_softmax(decoder.logits(params, hidden[:, begin:-1]))
    logp = jnp.take_along_axis(laws, rows(data.tokens)[..., None], axis=-1)[..., 0]
    return logp, -(jnp.exp(laws) * laws).sum(-1)


@functools.cache
def naive_step(family, method=GRPO):
    """Loss and gradient by the textbook: every position, every logit, no sharing."""
    data = batch(method)
    rows = lambda x: None if x is None else jnp.asarray(x).reshape(-1, x.shape[-1])  # noqa: E731

    def loss(params):
        logp, entropy = naive_facts(family, params, data)
        return algo.policy_loss(
            method,
            logp,
            old_logp=rows(data.old_logp),
            mask=rows(data.mask),
            advantages=rows(data.advantages),
            ref_logp=rows(data.ref_logp),
            weights=rows(data.weights),
            entropy=entropy if method.bonus == "entropy" else None,
        )[0]

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(model(family)[2]))


def step_of(family="llama", method=GRPO, **settings):
    """Loss and gradient of the learner: plain gradient descent moves by the gradient."""
    one = learner(family, method=method, **settings)
    part, _ = one._placed(batch(method))
    assert isinstance(part, Packed) == one.packing
    before = jax.device_get(model(family)[2])
    state, metrics = one.update(one.init(before), batch(method))
    after = jax.device_get(state.params)
    gradient = jax.tree.map(lambda old, new: old - new, before, after)
    return jax.device_get(metrics), gradient


def assert_is(found, expected):
    metrics, gradient = found
    loss, slopes = expected
    np.testing.assert_allclose(metrics["loss/total"], loss, atol=1e-5)
    assert max(np.abs(x).max() for x in jax.tree.leaves(slopes)) > 1e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradient, slopes
    )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradient_are_those_of_completions_with_their_own_prompts(family, remat, packing):
    assert_is(step_of(family, remat=remat, packing=packing), naive_step(family))


def test_remat_of_the_dots_does_not_change_a_packed_update():
    assert_is(step_of(packing=True, remat="dots"), naive_step("llama"))


@pytest.mark.parametrize("size", [by_hand(1), 2, by_hand(16)])
def test_microbatches_of_bins_add_up_to_the_whole(size):
    assert_is(step_of(packing=True, microbatch_completions=size), naive_step("llama"))


@pytest.mark.parametrize(("fsdp", "size"), [(8, 0), (2, 2), by_hand(1, 0), by_hand(2, 0)])
def test_eight_devices_learn_from_bins_what_one_learns(fsdp, size):
    found = step_of(packing=True, devices=8, fsdp=fsdp, microbatch_completions=size)
    assert_is(found, naive_step("llama"))


def test_gradient_of_the_entropy_goes_through_the_rows():
    assert_is(step_of(method=BONUS, packing=True), naive_step("llama", BONUS))


@pytest.mark.parametrize("chunk", [32])
def test_chunks_of_the_head_do_not_change_a_packed_update(chunk):
    assert_is(step_of(packing=True, logp_chunk_tokens=chunk), naive_step("llama"))


def test_packed_metrics_are_the_padded_ones():
    packed, padded = (step_of(packing=packing)[0] for packing in (True, False))
    assert packed.keys() == padded.keys()
    for name, value in padded.items():
        np.testing.assert_allclose(packed[name], value, atol=1e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(("devices", "fsdp", "size"), [(1, 1, 0), (1, 1, 2), (8, 2, 2)])
def test_log_probs_and_entropies_come_back_in_place(devices, fsdp, size):
    data = batch()
    where = {"devices": devices, "fsdp": fsdp, "microbatch_completions": size}
    one = learner(packing=True, **where)
    params = model()[2]
    logp, entropy = (np.asarray(x).reshape(P, G, T) for x in naive_facts("llama", params, data))
    state = one.init(params)
    facts = jax.device_get(one.facts(state, data))
    for found, expected in (
        (one.logps(state.params, data), logp),
        (facts.logp, logp),
        (facts.entropy, entropy),
    ):
        np.testing.assert_allclose(found, np.where(data.mask, expected, 0), atol=1e-5, rtol=1e-5)


def test_token_changes_no_log_prob_outside_its_completion():
    """Bitwise: of the others nothing moves at all, in its own only the tokens from it on."""
    data, params = batch(), model()[2]
    one = learner(packing=True)
    before = np.asarray(one.logps(params, data))
    for p, g, t in ((1, 4, 0), (1, 0, 6), (0, 3, 2), (5, 0, 0)):
        tokens = np.array(data.tokens)
        tokens[p, g, t] = (tokens[p, g, t] + 11) % VOCAB
        after = np.asarray(one.logps(params, dataclasses.replace(data, tokens=tokens)))
        own = np.zeros(before.shape, bool)
        own[p, g, t:] = True
        np.testing.assert_array_equal(after[~own], before[~own])
        moved = (after != before)[p, g, t : int(data.mask[p, g].sum())]
        assert moved.all(), (p, g, t)


# The layout, on the host


def random_lengths(seed):
    rng = np.random.default_rng(seed)
    mean = rng.choice([1.5, 4, 12, 40])
    lengths = np.minimum(
        rng.geometric(1 / mean, (rng.choice([2, 4, 8]), rng.choice([1, 3, 16]))), 64
    )
    lengths[rng.random(lengths.shape) < rng.choice([0, 0.3])] = 0
    lengths[rng.integers(len(lengths)), 0] = rng.choice([2, 33, 64])
    return lengths


@pytest.mark.parametrize("seed", range(40))
def test_every_token_is_predicted_once_from_the_right_place(seed):
    lengths = random_lengths(seed)
    data = batch_of(lengths, width=64, prompt_width=3)
    size, devices = [0, 0, 1, 3][seed % 4], [1, 2][seed % 2]
    found = pack(data, devices=devices, microbatch_completions=size)
    padded = data.tokens.size + data.prompts.tokens.size
    if found is None:
        return
    packed, home = found
    units, rows, width = packed.tokens.shape
    bins, per_bin = len(packed.reads), units // len(packed.reads)
    assert bins % devices == 0
    assert packed.tokens.size + packed.batch.prompts.tokens.size <= 0.8 * padded
    if size:
        at_most = size * 64 + -(-size // lengths.shape[1]) * 3
        assert per_bin * (rows * width + 3) <= at_most
    np.testing.assert_array_equal(home >= 0, lengths > 0)
    used = np.zeros(packed.tokens.shape, bool)
    for p, g in np.argwhere(lengths):
        row, n = home[p, g], lengths[p, g]
        places = packed.places[row]
        b = row // (len(packed.places) // bins)
        assert (places[n:] == -1).all()
        np.testing.assert_array_equal(packed.targets[b, places[:n]], data.tokens[p, g, :n])
        reads = packed.reads[b, places[:n]]
        unit = b * per_bin + reads[0] - per_bin * rows * width
        assert packed.batch.prompts.uid[unit] == data.prompts.uid[p]
        for t, read in enumerate(reads[1:]):
            at = np.unravel_index(b * per_bin * rows * width + read, used.shape)
            assert at[0] == unit
            assert (packed.tokens[at], packed.offsets[at]) == (data.tokens[p, g, t], t)
            assert packed.segments[at] == g
            assert not used[at]
            used[at] = True
    assert (packed.segments[~used] == -1).all()
    again, _ = pack(data, devices=devices, microbatch_completions=size)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(packed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_some_random_layouts_are_packed():
    found = [pack(batch_of(random_lengths(seed), width=64), devices=1) for seed in range(40)]
    assert sum(x is not None for x in found) > 20


def test_equal_lengths_and_empty_batches_stay_padded():
    for lengths in (np.full((P, G), T), np.zeros((P, G), int), np.ones((P, G), int)):
        assert pack(batch_of(lengths), devices=1) is None


def test_rows_are_first_fit_decreasing():
    """Slots 9, 7, 4, 4, 3, 1 in rows of 10: (9, 1), (7, 3), (4, 4); a token alone takes none."""
    lengths = np.array([[5, 10, 2, 8, 4, 5, 1, 1]])
    packed, _ = pack(batch_of(lengths, width=10), devices=1)
    rows = [[g for g in row if g >= 0] for row in packed.segments.reshape(-1, 10).tolist()]
    assert [row for row in rows if row] == [[1] * 9 + [2], [3] * 7 + [4] * 3, [0] * 4 + [5] * 4]


def test_long_runs_see_few_shapes():
    """200 steps of 8 groups x 16 completions of geometric lengths with mean 48, at most 256."""
    rng = np.random.default_rng(0)
    shapes = {}
    for _ in range(200):
        lengths = np.minimum(rng.geometric(1 / 48, (8, 16)), 256)
        data = batch_of(lengths, width=256, prompt_width=64)
        packed, _ = pack(data, devices=2)
        shape = tuple(x.shape for x in jax.tree.leaves(packed))
        widths = (packed.tokens.shape[2], packed.reads.shape[1] * 4 / packed.tokens[0].size)
        shapes.setdefault(shape, widths)
    assert len(shapes) <= 12
    of_width = [width for width, _ in shapes.values()]
    bound = (len(_ROWS) + 1) * len(_UNITS) * 4
    assert max(of_width.count(width) for width in of_width) <= bound
