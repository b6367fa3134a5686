"""An update is the same however it is cut, and never what the data does not say."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_hand import by_hand
from small_models import (
    CONFIGS,
    VOCAB,
    completed,
    learner,
    model,
    off_policy_batch,
    prompts,
    take,
    weighed,
)
from small_models import PLAIN as GRPO

from jgrpo import algo
from jgrpo.config import OptimConfig
from jgrpo.learner.microbatch import merge_microbatches, split_microbatches
from jgrpo.learner.optim import make_optimizer

P, G, T = 8, 4, 6
EOS = 1
GRPO_KL = algo.method("grpo", kl_coef=0.1)


def rollouts(count=P, width=T, seed=0):
    return completed(prompts(count), G, width, seed)


def stepped(batch, family="llama", **settings):
    """Parameters and metrics after one update, by default of plain gradient descent."""
    one = learner(family, **settings)
    state, metrics = one.update(one.init(model(family)[2]), batch)
    return jax.device_get((state.params, metrics))


@functools.cache
def whole_step(method=GRPO):
    return stepped(off_policy_batch(method=method), method=method)


def assert_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


def moved(params, family="llama"):
    gap = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), params, model(family)[2])
    return max(jax.tree.leaves(gap))


def adamw(**settings):
    return make_optimizer(OptimConfig(lr=1e-3, **settings), 100)


# How a batch is cut


@pytest.mark.parametrize("size", [1, 8, *map(by_hand, (2, 4, 16, 32))])
def test_microbatches_of_any_size_give_the_update_of_the_whole(size):
    got = stepped(off_policy_batch(), microbatch_completions=size)
    assert moved(got[0]) > 1e-3
    assert_close(got, whole_step())


@pytest.mark.parametrize("size", [2, 8])
def test_microbatches_give_the_update_of_the_whole_with_a_reference(size):
    batch = off_policy_batch(method=GRPO_KL)
    got = stepped(batch, method=GRPO_KL, microbatch_completions=size)
    assert got[1]["loss/kl"] > 1e-4
    assert_close(got, whole_step(GRPO_KL))


@pytest.mark.parametrize("size", [3, 5, 6, 12, 64])
def test_microbatch_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=rf"microbatch_completions = {size} does not divide 8"):
        stepped(off_policy_batch(), microbatch_completions=size)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 32])
def test_microbatches_keep_each_completion_with_its_prompt_and_merge_back(size):
    batch = jax.tree.map(jnp.asarray, off_policy_batch())
    arrays, join = split_microbatches(batch, size)
    parts = [join([x[i] for x in arrays]) for i in range(P * G // size)]
    assert all(part.tokens.size == size * T for part in parts)
    tokens = jnp.stack([part.tokens for part in parts])
    np.testing.assert_array_equal(merge_microbatches(tokens, P), batch.tokens)
    uid = jnp.stack([jnp.broadcast_to(x.prompts.uid[:, None], x.mask.shape[:2]) for x in parts])
    expected = np.broadcast_to(np.asarray(batch.prompts.uid)[:, None], (P, G))
    np.testing.assert_array_equal(merge_microbatches(uid, P), expected)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_part_of_a_group_is_taken_on_every_device_at_once(size):
    """Four devices: a part has a row of each, and the row holds `size` of its completions."""
    batch = jax.tree.map(jnp.asarray, off_policy_batch())
    arrays, join = split_microbatches(batch, size, 4)
    whole = batch.prompts.uid.tolist()
    for part in (join([x[i] for x in arrays]) for i in range(arrays[0].shape[0])):
        assert part.tokens.shape[:2] == (4, size)
        assert [whole.index(uid) // (P // 4) for uid in part.prompts.uid.tolist()] == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [1, 4, 16])
def test_logps_do_not_depend_on_microbatches(size):
    batch = off_policy_batch()
    got = learner(microbatch_completions=size).logps(model()[2], batch)
    # Shapes choose the kernels of products, whose roundings differ by processor.
    np.testing.assert_allclose(got, learner().logps(model()[2], batch), atol=2e-5)


def losses_of_five_updates(**settings):
    one = learner(optimizer=adamw(), method=GRPO_KL, **settings)
    state, losses = one.init(model()[2]), []
    for _ in range(5):
        state, metrics = one.update(state, off_policy_batch(method=GRPO_KL))
        losses.append(float(metrics["loss/total"]))
    return losses


@functools.cache
def losses_on_one_device():
    return losses_of_five_updates()


@pytest.mark.parametrize(
    ("fsdp", "tensor", "size"),
    [
        *((1, 1, 2), (2, 1, 4), (8, 1, 1), (1, 2, 0), (2, 2, 4), (4, 2, 0), (2, 4, 0), (1, 8, 4)),
        *(by_hand(1, 1, 0), by_hand(2, 1, 0), by_hand(8, 1, 0), by_hand(2, 2, 0)),
    ],
    ids=lambda x: str(x),
)
def test_eight_devices_learn_what_one_learns(fsdp, tensor, size):
    """Over 4 and 8 devices of a tensor axis the two key heads stay whole, and over 8 the four."""
    expected = losses_on_one_device()
    assert expected[0] - expected[-1] > 1e-3
    mesh = {"devices": 8, "fsdp": fsdp, "tensor": tensor}
    got = losses_of_five_updates(**mesh, microbatch_completions=size)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (2, 1), (8, 1), (2, 2), (4, 2)])
def test_logps_do_not_depend_on_devices(fsdp, tensor):
    batch = off_policy_batch()
    # Parts of groups are refused where replica, fsdp and tensor are all above 1 (misfits.py).
    size = 2 if tensor == 1 else G
    many = learner(devices=8, fsdp=fsdp, tensor=tensor, microbatch_completions=size)
    got = many.logps(many.init(model()[2]).params, batch)
    np.testing.assert_allclose(got, learner().logps(model()[2], batch), atol=1e-5)


def test_order_of_the_prompts_does_not_matter():
    shuffled = take(off_policy_batch(), np.random.default_rng(0).permutation(P))
    assert_close(stepped(shuffled), whole_step())


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_the_update(remat):
    assert_close(stepped(off_policy_batch(), remat=remat), whole_step())


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"packing": True}, {"devices": 8}),
        *(by_hand({"microbatch_completions": 8}), by_hand({"remat": "dots"})),
    ],
    ids=str,
)
def test_unstacked_layers_do_not_change_the_update(settings):
    """Nor the log-probs; the state keeps its stacks."""
    assert_close(stepped(off_policy_batch(), unstack=True, **settings), whole_step())
    one, batch = learner(unstack=True, **settings), off_policy_batch()
    logps = one.logps(one.init(model()[2]).params, batch)
    expected = learner().logps(model()[2], batch)
    np.testing.assert_allclose(logps[batch.mask], expected[batch.mask], atol=1e-5)


@pytest.mark.parametrize("chunk", [7, 64])
def test_chunks_of_the_head_do_not_change_the_update(chunk):
    assert_close(stepped(off_policy_batch(), logp_chunk_tokens=chunk), whole_step())


# What is trained


def test_tokens_outside_the_mask_have_no_influence():
    batch = off_policy_batch()
    other = np.where(batch.mask, batch.tokens, (batch.tokens + 17) % VOCAB)
    assert (other != batch.tokens).any()
    garbage = dataclasses.replace(
        batch,
        tokens=other.astype(np.int32),
        old_logp=np.where(batch.mask, batch.old_logp, np.float32(-50)),
        advantages=np.where(batch.mask, batch.advantages, np.float32(1e4)),
    )
    # On the right of a completion nothing is seen from within it: not even a rounding changes.
    jax.tree.map(np.testing.assert_array_equal, stepped(garbage), whole_step())


def test_padding_of_the_prompts_has_no_influence():
    batch = off_policy_batch()
    tokens = np.where(batch.prompts.mask, batch.prompts.tokens, 33).astype(np.int32)
    garbage = dataclasses.replace(batch, prompts=dataclasses.replace(batch.prompts, tokens=tokens))
    assert_close(stepped(garbage), whole_step())


def eos_rollouts():
    """Every completion ends with EOS, and the padding after it is the same id."""
    drawn = rollouts()
    last = drawn.mask & ~np.pad(drawn.mask[..., 1:], [(0, 0), (0, 0), (0, 1)])
    tokens = np.where(last | ~drawn.mask, EOS, drawn.tokens).astype(np.int32)
    return dataclasses.replace(drawn, tokens=tokens), last


def eos_logps(params, last):
    batch = weighed(eos_rollouts()[0], np.ones((P, G)))
    return np.asarray(learner().logps(params, batch))[last].mean()


def test_eos_is_trained_although_padding_has_the_same_id():
    drawn, last = eos_rollouts()
    on_policy = np.asarray(learner().logps(model()[2], weighed(drawn, np.ones((P, G)))))
    drawn = dataclasses.replace(drawn, behavior_logp=np.where(drawn.mask, on_policy, 0))
    # Advantage on the EOS alone: without it in the mask there is no gradient at all.
    batch = weighed(drawn, np.ones((P, G)))
    batch = dataclasses.replace(batch, advantages=last.astype(np.float32))
    params, metrics = stepped(batch, optimizer=optax.sgd(0.1))
    assert metrics["grad/norm"] > 1e-3
    assert eos_logps(params, last) > eos_logps(model()[2], last) + 1e-3
    blind = dataclasses.replace(batch, mask=batch.mask & ~last)
    assert stepped(blind)[1]["grad/norm"] == 0


@pytest.mark.parametrize("family", CONFIGS)
def test_on_policy_ratio_is_one(family):
    drawn = rollouts()
    logp = np.asarray(learner(family).logps(model(family)[2], weighed(drawn, np.zeros((P, G)))))
    drawn = dataclasses.replace(drawn, behavior_logp=np.where(drawn.mask, logp, 0))
    _, metrics = stepped(weighed(drawn, np.ones((P, G))), family)
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["ratio/deviation_max"] < 1e-5
    assert metrics["invariant/logp_gap_max"] < 1e-5
    assert metrics["ratio/clip_fraction"] == 0
    assert abs(metrics["kl/old"]) < 1e-6


def test_gradient_of_the_update_is_the_weighted_policy_gradient():
    """At ratio 1 the loss has the gradient of -sum w A logp, here taken by finite differences."""
    drawn = rollouts()
    logp = np.asarray(learner().logps(model()[2], weighed(drawn, np.zeros((P, G)))))
    drawn = dataclasses.replace(drawn, behavior_logp=np.where(drawn.mask, logp, 0))
    batch = weighed(drawn, np.random.default_rng(0).standard_normal((P, G)))
    before = jax.device_get(model()[2])
    gradient = jax.tree.map(lambda old, new: old - new, before, stepped(batch)[0])
    direction = jax.tree.map(
        lambda x: np.random.default_rng(x.size).standard_normal(x.shape).astype(np.float32), before
    )
    one = learner()

    def objective(distance):
        params = jax.tree.map(lambda x, d: x + np.float32(distance) * d, before, direction)
        logp = np.asarray(one.logps(params, batch), np.float64)
        return (batch.weights * batch.advantages * logp).sum()

    slope = (objective(1e-3) - objective(-1e-3)) / 2e-3
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    assert abs(slope) > 1e-2
    assert -along == pytest.approx(slope, rel=2e-2)


def test_zero_advantages_without_a_penalty_change_nothing():
    batch = off_policy_batch()
    batch = dataclasses.replace(batch, advantages=np.zeros(batch.mask.shape, np.float32))
    params, metrics = stepped(batch, optimizer=adamw())
    assert metrics["grad/norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(model()[2]))


def test_batch_without_a_trained_token_changes_nothing():
    batch = weighed(
        dataclasses.replace(rollouts(), mask=np.zeros((P, G, T), bool)), np.ones((P, G))
    )
    params, metrics = stepped(batch, optimizer=adamw())
    assert metrics["optim/skipped_updates"] == 0
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(model()[2]))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_log_probs_and_entropy_are_those_at_the_temperature(temperature):
    """Doubling the temperature halves the logits; the head is linear in them."""
    batch = off_policy_batch()
    params = model()[2]
    scaled = params | {"lm_head": params["lm_head"] / temperature}
    got = learner(temperature=temperature).logps(params, batch)
    np.testing.assert_allclose(got, learner().logps(scaled, batch), atol=1e-5)


def test_entropy_is_computed_only_if_it_is_asked():
    """The update is the same without, and a bonus needs it all the same."""
    params, metrics = stepped(off_policy_batch(), log_entropy=False)
    expected_params, expected = whole_step()
    assert_close((params, metrics), (expected_params, {k: expected[k] for k in metrics}))
    assert expected.keys() - metrics.keys() == {"entropy/mean"}
    bonus = algo.method("grpo", kl_coef=0.0, bonus="entropy", entropy_coef=0.01)
    assert "entropy/mean" in stepped(off_policy_batch(), method=bonus, log_entropy=False)[1]


# How the state is kept


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_gradient_that_is_not_finite_leaves_weights_and_optimizer_bitwise(devices, value):
    one = learner(optimizer=adamw(), devices=devices)
    state, _ = one.update(one.init(model()[2]), off_policy_batch())
    before = jax.device_get((state.params, state.opt_state))
    batch = off_policy_batch()
    spoiled = batch.advantages.copy()
    spoiled[3, 2, 0] = value
    state, metrics = one.update(state, dataclasses.replace(batch, advantages=spoiled))
    assert metrics["optim/skipped_updates"] == 1
    after = jax.device_get((state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    state, metrics = one.update(state, batch)
    assert metrics["optim/skipped_updates"] == 0
    assert np.isfinite(metrics["grad/norm"])


def test_state_is_donated_and_the_callers_weights_survive():
    one = learner(optimizer=adamw())
    params = model()[2]
    state = one.init(params)
    one.update(state, off_policy_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_reference_weights_are_kept_only_if_needed_and_survive_updates():
    assert learner().init(model()[2]).ref_params is None
    one = learner(method=GRPO_KL)
    state, _ = one.update(one.init(model()[2]), off_policy_batch(method=GRPO_KL))
    assert moved(jax.device_get(state.params)) > 1e-3
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(state.ref_params), jax.device_get(model()[2])
    )


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 1), (8, 2)])
def test_one_shape_compiles_once_from_the_first_update_on(devices, fsdp):
    one = learner(optimizer=adamw(), devices=devices, fsdp=fsdp)
    state = one.init(model()[2])
    for _ in range(3):
        state, _ = one.update(state, off_policy_batch())
    assert one._jitted_update._cache_size() == 1
    wider = weighed(rollouts(width=T + 2), np.ones((P, G)))
    one.update(state, wider)
    assert one._jitted_update._cache_size() == 2


def test_fsdp_splits_the_moments_as_the_weights():
    one = learner(optimizer=adamw(), devices=8, fsdp=2)
    state, _ = one.update(one.init(model()[2]), off_policy_batch())
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    for tree in (state.params, moments):
        leaf = tree["layers"]["gate"]
        assert leaf.addressable_shards[0].data.size == leaf.size // 2


def test_bfloat16_activations_train_float32_weights():
    one = learner(dtype="bfloat16", optimizer=adamw())
    state, losses = one.init(model(dtype="bfloat16")[2]), []
    for _ in range(3):
        state, metrics = one.update(state, off_policy_batch())
        losses.append(float(metrics["loss/total"]))
        assert metrics["optim/skipped_updates"] == 0
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def largest_rows_of_logits(chunk):
    """Most elements of one array with a vocabulary dim in the compiled update, per vocabulary id.

    The vocabulary is a length that no other dim has.
    """
    one = learner(logp_chunk_tokens=chunk)
    state, batch = one.init(model()[2]), off_policy_batch()
    # Bare arrays: `lower` fills its arguments' records with descriptions that are no arrays.
    leaves, structure = jax.tree.flatten(batch)
    update = jax.jit(lambda p, o, arrays: one._update(p, o, jax.tree.unflatten(structure, arrays)))
    text = update.lower(state.params, state.opt_state, leaves).compile().as_text()
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    return max(int(np.prod(shape)) // VOCAB for shape in shapes if VOCAB in shape)


def test_logits_of_all_tokens_never_exist_at_once():
    """192 tokens in chunks of 48. The embedding itself has 32 numbers per vocabulary id."""
    assert largest_rows_of_logits(chunk=P * G * T) == P * G * T
    assert largest_rows_of_logits(chunk=48) == 48
