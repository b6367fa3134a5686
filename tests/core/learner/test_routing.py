"""Routers in the update: their terms add up over parts, and routes can be taken again."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from by_hand import by_hand
from small_models import completed, learner, model, off_policy_batch, prompts, sampler, weighed

from jgrpo.learner.batch import unweighted
from jgrpo.learner.routing import RouterLoss, expert_load, with_routes
from jgrpo.models import decoder
from jgrpo.models.moe import Routes
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Batch

MOE, P, G, T, L, X = "qwen3_moe", 8, 4, 6, 2, 8
BOTH = RouterLoss(balance=0.3, z=0.02)


def batch_of() -> Batch:
    return off_policy_batch(MOE)


def stepped(batch, **settings):
    """Parameters and metrics after one update of plain gradient descent."""
    one = learner(MOE, **settings)
    state, metrics = one.update(one.init(model(MOE)[2]), batch)
    return jax.device_get((state.params, metrics))


@functools.cache
def whole_step(router=BOTH):
    return stepped(batch_of(), router=router)


def assert_close(a, b, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=2e-5), a, b)


@functools.cache
def routes_of(family=MOE):
    """What the learner's own forward takes: log-probs, experts of completions, of prompts."""
    return jax.device_get(learner(family).routes(model(family)[2], batch_of()))


@functools.cache
def probabilities():
    """Of each expert in each layer where each token is predicted, out of loads of one expert."""
    _, graphdef, params = model(MOE)
    batch, laws = batch_of(), np.zeros((P, G, T, L, X))
    for layer in range(L):
        for expert in range(X):
            load = np.zeros((L, X), np.float32)
            load[layer, expert] = L / X
            told = Routes(load=load)
            asked = batch.prompts
            _, cache = decoder.prefill(graphdef, params, asked.tokens, asked.mask, routes=told)
            tokens = batch.tokens[:, :, :-1]
            _, routed = decoder.complete(graphdef, params, tokens, cache, routes=told)
            laws[:, :, 0, layer, expert] = cache.routed.terms.balance[:, -1:]
            laws[:, :, 1:, layer, expert] = routed.terms.balance
    return laws


def test_terms_are_means_over_the_trained_tokens_of_the_whole_batch():
    batch, (_, experts, _) = batch_of(), routes_of()
    share, laws = batch.mask / batch.mask.sum(), probabilities()
    np.testing.assert_allclose(laws.sum(-1), 1, atol=1e-5)
    taken = np.eye(X)[experts].sum(-2) / 2
    load = np.einsum("pgt,pgtlx->lx", share, taken)
    np.testing.assert_allclose(expert_load(experts, share.astype(np.float32), X), load, atol=1e-6)
    balance = X / L * np.einsum("lx,pgt,pgtlx->", load, share, laws)
    metrics = whole_step()[1]
    assert metrics["router/balance"] == pytest.approx(balance, rel=1e-5)
    plain = whole_step(RouterLoss())[1]
    assert "router/balance" not in plain
    assert metrics["router/z"] == pytest.approx(plain["router/z"], rel=1e-5)
    assert plain["loss/router"] == 0
    expected = 0.3 * balance + 0.02 * metrics["router/z"]
    assert metrics["loss/router"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss/total"] - plain["loss/total"] == pytest.approx(expected, rel=1e-4)
    assert metrics["grad/norm"] != pytest.approx(plain["grad/norm"], rel=1e-3)


@pytest.mark.parametrize("size", [by_hand(1), 4, by_hand(8)])
def test_microbatches_of_any_size_give_the_update_of_the_whole(size):
    assert_close(stepped(batch_of(), router=BOTH, microbatch_completions=size), whole_step())


@pytest.mark.parametrize(
    ("settings", "router"),
    [
        ({"packing": True}, RouterLoss(z=0.02)),
        by_hand({"unstack": True}, BOTH),
        ({"remat": "dots"}, BOTH),
    ],
    ids=["packing", "unstack", "remat"],
)
def test_other_programs_give_the_same_update(settings, router):
    assert_close(stepped(batch_of(), router=router, **settings), whole_step(router))


@pytest.mark.parametrize(
    ("fsdp", "expert", "size"), [(1, 8, 0), (2, 2, 4), by_hand(2, 1, 0), by_hand(1, 4, 2)]
)
def test_eight_devices_learn_what_one_learns(fsdp, expert, size):
    settings = {"devices": 8, "fsdp": fsdp, "expert": expert, "microbatch_completions": size}
    assert_close(stepped(batch_of(), router=BOTH, **settings), whole_step(), atol=1e-5)


def test_experts_and_their_moments_are_split_over_the_axis():
    one = learner(MOE, devices=8, expert=4, optimizer=optax.adam(1e-3))
    state = one.init(model(MOE)[2])
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        gate = tree["layers"]["experts_gate"]
        assert gate.addressable_shards[0].data.shape == (L, X // 4, 32, 24)


def test_routes_of_the_same_weights_change_nothing():
    """R2 before the first update: the learner takes the experts that it would take anyway."""
    logp, experts, read = routes_of()
    batch = batch_of()
    np.testing.assert_allclose(logp, learner(MOE).logps(model(MOE)[2], batch), atol=1e-6)
    params, metrics = stepped(with_routes(batch, experts, read), router=BOTH)
    assert metrics.pop("router/differs") == 0
    assert_close((params, metrics), whole_step())


def other_routes():
    _, experts, read = routes_of()
    return with_routes(batch_of(), (experts + 1) % X, (read + 1) % X)


@pytest.mark.parametrize(
    "settings",
    [{}, by_hand({"microbatch_completions": 2}), {"devices": 8, "expert": 2}],
    ids=str,
)
def test_given_routes_are_taken_whatever_the_routers_say(settings):
    """Other experts than its own: another policy, with gradients in the experts taken alone."""
    batch = other_routes()
    params, metrics = stepped(batch, **settings)
    assert metrics["router/differs"] > 0.5
    one = learner(MOE, **settings)
    found = np.asarray(one.logps(one.init(model(MOE)[2]).params, batch))
    gap = np.abs(found - routes_of()[0])[batch.mask]
    assert gap.max() > 1e-2
    assert_close((params, metrics), stepped(batch), atol=1e-5)
    again = jax.device_get(one.routes(one.init(model(MOE)[2]).params, batch))
    np.testing.assert_array_equal(again[1][batch.mask], batch.experts[batch.mask])
    moved = np.abs(params["layers"]["router"] - model(MOE)[2]["layers"]["router"])
    assert moved.max() > 1e-4  # weights of given experts are the router's still


def test_routes_may_be_compared_and_not_taken():
    """As without them, and the same said of how many differ: of all, and of none."""
    measured = dataclasses.replace(BOTH, replay=False)
    for batch, differs in ((other_routes(), stepped(other_routes())[1]["router/differs"]),
                           (with_routes(batch_of(), *routes_of()[1:]), 0.0)):  # fmt: skip
        params, metrics = stepped(batch, router=measured)
        assert metrics.pop("router/differs") == pytest.approx(differs)
        assert_close((params, metrics), whole_step())


def draw(root, *, count=P, slots=0, **settings):
    """Rollouts with routes noted; 32 completions in as many slots, or in fewer."""
    engine, params = sampler(root, MOE, eos_ids=(1,), chunk_tokens=2, slots=slots, **settings)
    engine = dataclasses.replace(engine, routes=True)
    limits = {"group_size": G, "max_tokens": T, "sampling": Sampling()}
    return engine.generate(params, prompts(count), jax.random.key(3), **limits)


@pytest.mark.parametrize(
    "settings",
    [
        *({"slots": 6}, {"devices": 8, "expert": 4, "slots": 8}),
        *(by_hand({}), by_hand({"unstack": False, "slots": 6})),
    ],
    ids=str,
)
def test_sampler_notes_the_experts_that_the_learner_takes(root, settings):
    """In float32 they compute the same: R3 replays what the learner would do."""
    drawn = draw(root, **settings)
    batch = unweighted(drawn, np.ones((P, G), bool))
    assert batch.experts.dtype == np.uint8
    bare = with_routes(batch, None, None)
    logp, experts, read = jax.device_get(learner(MOE).routes(model(MOE)[2], bare))
    order = functools.partial(np.sort, axis=-1)
    np.testing.assert_array_equal(order(batch.experts)[batch.mask], order(experts)[batch.mask])
    asked = batch.prompts.mask
    np.testing.assert_array_equal(order(batch.prompts.experts)[asked], order(read)[asked])
    np.testing.assert_allclose(drawn.behavior_logp[batch.mask], logp[batch.mask], atol=2e-5)
    replayed = learner(MOE).logps(model(MOE)[2], batch)
    np.testing.assert_allclose(replayed[batch.mask], logp[batch.mask], atol=2e-5)


def test_tokens_do_not_depend_on_devices_or_notes(root):
    one, many = draw(root), draw(root, devices=8, expert=4)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    engine, params = sampler(root, MOE, eos_ids=(1,), chunk_tokens=2)
    limits = {"group_size": G, "max_tokens": T, "sampling": Sampling()}
    plain = engine.generate(params, prompts(P), jax.random.key(3), **limits)
    assert plain.experts is None
    assert plain.prompts.experts is None
    np.testing.assert_array_equal(one.tokens, plain.tokens)


def test_a_dense_model_has_no_terms():
    drawn = completed(prompts(P), G, T)
    _, metrics = jax.device_get(
        learner().update(learner().init(model()[2]), weighed(drawn, np.ones((P, G))))
    )
    assert not any(name.startswith(("router/", "loss/router")) for name in metrics)
