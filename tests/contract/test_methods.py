"""What every row of METHODS, and every composition of level, trust and weights, must do.

A row that breaks a rule by design stands in EXEMPT with the reason. Arrays are tiny and nothing is
compiled but where compiling is the point: that is faster than compiling every row.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jgrpo.algo import (
    METHODS,
    Side,
    advantages,
    constraint_scale,
    init_state,
    late_advantages,
    method,
    needs,
    policy_loss,
    token_weights,
)
from jgrpo.algo.describe import NEEDS
from jgrpo.algo.methods import SLOTS

B, T, P, G = 8, 6, 2, 4
LENGTHS = np.array([6, 5, 1, 0, 6, 3, 4, 2])
MASK = np.arange(T)[None, :] < LENGTHS[:, None]
SEGMENTS = np.arange(T)[None, :] // 2 * np.ones((B, 1), int)
_OUTCOME = "measures rewards against something outside of the group"
EXEMPT = {
    ("reward shift", "sft"): "the reward of a reference solution is its weight",
    **dict.fromkeys((("reward shift", name) for name in ("ngrpo", "spo")), _OUTCOME),
    **dict.fromkeys(
        (("reward shift", name) for name in ("v0_5", "ppo_clip", "reinforce_pp")), _OUTCOME
    ),
    **dict.fromkeys(
        (
            ("reward shift", name)
            for name in (
                *("c_grpo", "unlikeliness", "tempsamp_r1", "bnpo"),
                *("grpo_lambda", "posterior_grpo", "format_length", "m_grpo"),
            )
        ),
        "the shape is for rewards in [0, 1]",
    ),
    **dict.fromkeys((("reward shift", name) for name in ("disco", "drpo")), "rewards are labels"),
    ("reward shift", "grpo_care"): "right is a reward above 0.1",
    ("reward shift", "s_grpo"): "a reward says whether a completion is correct",
    ("order in a group", "s_grpo"): "a group is in the order of its exits",
}
LEVELS_AND_TRUSTS = list(itertools.product(SLOTS["level"], SLOTS["trust"]))
WEIGHTS = itertools.cycle(SLOTS["weights"])
COMPOSITIONS = {
    f"{level}-{trust}-{weights}": dataclasses.replace(
        METHODS["grpo"],
        level=level,
        trust=trust,
        weights=weights,
        constant_length_tokens=T,
        clip_high=0.28,
        dual_clip=3.0,
    )
    for (level, trust), weights in zip(LEVELS_AND_TRUSTS, WEIGHTS, strict=False)
}
rows = pytest.mark.parametrize("name", METHODS)


def arrays(seed=0, spread=0.1):
    """A batch with an empty row: log-probs of policy, old policy and reference, advantages."""
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(B, T)).astype(np.float32)
    logp = old + spread * draw.normal(size=(B, T)).astype(np.float32)
    ref = old + 0.2 * draw.normal(size=(B, T)).astype(np.float32)
    return logp.astype(np.float32), old, ref, draw.normal(size=B).astype(np.float32)


def run(m, logp, old, ref, adv, mask=MASK, weights=None, **further):
    """Value and gradient; rows that couple a group get their advantages token by token."""
    weights = token_weights(m, mask) if weights is None else weights
    per_token = adv[:, None] * np.ones((1, T), np.float32) if m.late != "none" else adv
    further = {"behavior_logp": old, "segments": SEGMENTS[: len(old)], **further}
    return jax.value_and_grad(
        lambda x: policy_loss(
            m, x, old_logp=old, mask=mask, advantages=per_token, ref_logp=ref, weights=weights,
            **further,
        )[0]
    )(logp)  # fmt: skip


def without_penalties(name):
    """The policy term alone."""
    return method(name, kl_coef=0.0, constraint="none")


def side(seed=1, order=None):
    """All the side information there is, with the completions of a group in any order."""
    draw = np.random.default_rng(seed)
    order = np.arange(G) if order is None else order
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)  # noqa: E731
    fields = {
        "lengths": LENGTHS.reshape(P, G),
        "sequence_kl": normal(P, G),
        "mean_logp": normal(P, G),
        "strata": np.arange(P * G).reshape(P, G) % 2,
        "reference": np.arange(G)[None] * np.ones((P, 1)) == G - 1,
        "mask": MASK.reshape(P, G, T),
        "tokens": draw.integers(0, 2, (P, G, T)),
        "token_kl": normal(P, G, T),
        "values": normal(P, G, T),
        "segments": SEGMENTS.reshape(P, G, T),
        "prefix_scores": normal(P, G, T),
        "answer_logp": normal(P, G),
        "truncated": LENGTHS.reshape(P, G) == T,
        "non_incorrect": np.ones((P, G), bool),
        "repeats": np.zeros((P, G), bool),
        "skilled": np.arange(P * G).reshape(P, G) % 3 == 0,
        "chance": np.linspace(0.0, 0.9, P * G, dtype=np.float32).reshape(P, G),
    }
    by_prompt = {"prior": normal(P), "prompt_ids": np.arange(P), "drift": np.zeros(P, np.float32)}
    moved = {name: x[:, order] for name, x in fields.items()}
    return Side(**moved, **by_prompt, max_completion_tokens=T, step=np.zeros((), np.int32))


def rewards_of(m, seed=5):
    """Rewards in quarters, with as many columns as the row takes."""
    draw = np.random.default_rng(seed)
    names = ("c_grpo", "format_length", "train_long_think_short", "autorule", "m_grpo")
    two = dict.fromkeys(names, 2)
    columns = ({"fgrpo": 4} | two).get(m.name, 3 if "columns" in needs(m) else 0)
    shape = (P, G, columns) if columns else (P, G)
    return draw.integers(0, 5, shape).astype(np.float32) / 4


@rows
@pytest.mark.parametrize("spread", [0.0, 0.1, 50.0])
def test_value_and_gradient_are_finite(name, spread):
    loss, gradient = run(METHODS[name], *arrays(spread=spread))
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_every_level_and_trust_agrees_with_the_loops(composition):
    m = COMPOSITIONS[composition]
    logp, old, ref, adv = arrays(spread=0.5)
    loss, gradient = run(m, logp, old, ref, adv)
    per_token = np.broadcast_to(adv[:, None], (B, T))
    expected_loss, expected = oracles.policy_loss(m, logp, old, MASK, per_token, ref, SEGMENTS)
    scale = max(1.0, np.abs(expected).max(), abs(expected_loss))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * scale)


@rows
def test_loss_of_every_row_agrees_with_the_loops(name):
    """In float64 with complex steps; constraints have tests of their own."""
    m = method(name, constraint="none")
    logp, old, ref, adv = arrays(seed=4, spread=0.3)
    behavior = old + np.float32(0.05) * np.sin(old)
    loss, gradient = run(m, logp, old, ref, adv, behavior_logp=behavior)
    per_token = np.broadcast_to(adv[:, None], (B, T))
    expected_loss, expected = oracles.policy_loss(
        m, logp, old, MASK, per_token, ref, SEGMENTS, behavior
    )
    scale = max(1.0, np.abs(expected).max(), abs(expected_loss))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * scale)


def test_every_base_and_scale_goes_with_every_trust_and_weights():
    """Advantages of all bases, then all scales, at once through every trust and weights."""
    rewards = rewards_of(METHODS["grpo"])
    state = init_state(METHODS["spo"], num_prompts=P)
    pairs = [(base, "group_std") for base in SLOTS["base"]]
    pairs += [("group_mean", scale) for scale in SLOTS["scale"]]
    made = []
    for base, scale in pairs:
        tracker = "beta" if base == "tracker" else "none"
        m = method("gspo", base=base, scale=scale, tracker=tracker)
        made.append(advantages(m, rewards, side(), state).values.reshape(-1))
    logp, old, ref, _ = arrays(spread=0.5)
    for trust, weights in itertools.product(SLOTS["trust"], SLOTS["weights"]):
        m = method("gspo", trust=trust, weights=weights, level="token", constant_length_tokens=T)
        results = jax.vmap(lambda adv, m=m: run(m, logp, old, ref, adv))(jnp.stack(made))
        for x in results:
            assert np.all(np.isfinite(x)), (trust, weights)


@rows
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_padding_has_zero_gradient_whatever_it_holds(name, bad):
    logp, old, ref, adv = arrays()
    loss, gradient = run(METHODS[name], logp, old, ref, adv)
    spoiled = [np.where(MASK, x, bad).astype(np.float32) for x in (logp, old, ref)]
    weights = np.where(MASK, token_weights(METHODS[name], MASK), bad).astype(np.float32)
    spoiled_loss, spoiled_gradient = run(METHODS[name], *spoiled, adv, weights=weights)
    assert np.all(np.asarray(spoiled_gradient)[~MASK] == 0)
    assert spoiled_loss == loss
    assert np.array_equal(spoiled_gradient, gradient)


@rows
def test_zero_advantage_gives_zero_policy_gradient(name):
    logp, old, ref, adv = arrays()
    loss, gradient = run(without_penalties(name), logp, old, ref, np.zeros_like(adv))
    assert loss == 0
    assert not np.any(gradient)


@rows
def test_gradient_at_ratio_one_is_weighted_reinforce(name):
    m = without_penalties(name)
    logp, _, ref, adv = arrays()
    _, gradient = run(m, logp, logp, ref, adv)
    expected = -np.asarray(token_weights(m, MASK)) * adv[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@rows
@pytest.mark.parametrize("size", [3])
def test_microbatches_add_up_to_the_batch(name, size):
    m = METHODS[name]
    logp, old, ref, adv = arrays(spread=0.3)
    weights = np.asarray(token_weights(m, MASK))
    whole = {"constraint_scale": constraint_scale(m, logp, old_logp=old, mask=MASK)}
    share = (MASK / MASK.sum()).astype(np.float32)
    loss, gradient = run(m, logp, old, ref, adv)
    total, parts = 0.0, []
    for start in range(0, B, size):
        cut = slice(start, start + size)
        part, slope = run(
            m, logp[cut], old[cut], ref[cut], adv[cut], MASK[cut], weights[cut],
            token_share=share[cut], **whole,
        )  # fmt: skip
        total += part
        parts.append(slope)
    np.testing.assert_allclose(total, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(parts), gradient, rtol=1e-6, atol=1e-6)


@rows
def test_order_of_rows_does_not_matter(name):
    order = np.random.default_rng(3).permutation(B)
    data = arrays(spread=0.3)
    loss, gradient = run(METHODS[name], *data)
    shuffled, slope = run(METHODS[name], *(x[order] for x in data), MASK[order])
    np.testing.assert_allclose(shuffled, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, np.asarray(gradient)[order], rtol=1e-6, atol=1e-8)


def values_of(m, rewards, extra):
    """Advantages of a row with all the state and side information it may want."""
    state = init_state(m, num_prompts=P) if m.tracker != "none" else None
    return np.asarray(advantages(m, rewards, extra, state).values)


@rows
def test_shifting_the_rewards_of_a_group_changes_nothing(name):
    m = METHODS[name]
    rewards = rewards_of(m)
    shift = np.array([2.0, -1.0], np.float32).reshape(P, *[1] * (rewards.ndim - 1))
    before, after = values_of(m, rewards, side()), values_of(m, rewards + shift, side())
    same = np.allclose(before, after, atol=1e-5)
    assert same != (("reward shift", name) in EXEMPT)


@rows
def test_order_of_completions_in_a_group_does_not_matter(name):
    order = np.array([2, 0, 3, 1])
    if ("order in a group", name) in EXEMPT:
        pytest.skip(EXEMPT["order in a group", name])
    m = METHODS[name]
    rewards = rewards_of(m, seed=8) + 0.01 * np.random.default_rng(0).random((P, G)).reshape(
        P, G, *[1] * (rewards_of(m).ndim - 2)
    ).astype(np.float32)
    before = values_of(m, rewards, side())
    after = values_of(m, rewards[:, order], side(order=order))
    if before.shape == (B, T):
        before, after = before.reshape(P, G, T), after.reshape(P, G, T)
    np.testing.assert_allclose(after, before[:, order], rtol=1e-5, atol=1e-5)


@rows
def test_bfloat16_inputs_reduce_in_float32(name):
    """The same values in both types give the same loss; sums in bfloat16 would differ by 1e-2."""
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in arrays(spread=0.3)]
    wide = [x.astype(jnp.float32) for x in narrow]
    loss, gradient = run(METHODS[name], *narrow)
    expected, slope = run(METHODS[name], *wide)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-7)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), slope, rtol=1e-2, atol=1e-3)


@rows
def test_needs_are_enough_and_each_is_needed(name):
    """With what `needs` names the row runs; with one thing less, the error names it."""
    m = METHODS[name]
    logp, old, ref, _ = arrays()
    everything = {field.name: getattr(side(), field.name) for field in dataclasses.fields(Side)}
    in_loss = {"ref_logp": ref, "behavior_logp": old, "segments": SEGMENTS}

    def whole(given):
        extra = {field: x if field in given else None for field, x in everything.items()}
        extra["max_completion_tokens"] = T if "lengths" in given else None
        state = init_state(m, num_prompts=P) if "state" in given else None
        rewards = rewards_of(m)
        if "columns" in needs(m) and "columns" not in given:
            rewards = rewards[..., 0]
        made = advantages(m, rewards, Side(**extra), state).values
        passed = {field: x for field, x in in_loss.items() if field in given}
        per_token = made.reshape(-1) if made.shape == (P, G) else made
        if "late" in given:
            per_token, _ = late_advantages(
                m, logp, old_logp=old, mask=MASK, targets=rewards_of(m).round()
            )
        policy_loss(m, logp, old_logp=old, mask=MASK, advantages=per_token, **passed)

    assert needs(m) <= set(NEEDS)
    whole(needs(m))
    # What the loop supplies by its way of sampling, or what has a default for a whole batch.
    by_the_loop = {"solutions", "allocation", "pivot", "constraint_scale", "guidance"}
    by_the_loop |= {"rounds", "preference", "moving_reference"}
    by_the_loop |= {"draw", "refill", "replay", "rubric", "control", "predictions", "hints"}
    by_the_loop |= {"calls", "skills", "stops", "experts"}
    if m.kl_in != "loss":
        by_the_loop.add("ref_logp")
    words = {"columns": "column", "state": "state", "late": "late_advantages"}
    for need in needs(m) - by_the_loop:
        if name in ("gdpo", "mo_grpo") and need == "columns":
            continue  # one reward is a single column
        with pytest.raises(ValueError, match=words.get(need, need)):
            whole(needs(m) - {need})


def test_one_shape_compiles_once():
    """All rows in one program, so that they are compiled together."""
    traces = []

    @jax.jit
    def step(logp, old, ref, adv, mask):
        traces.append("")
        return sum(
            policy_loss(
                m, logp, old_logp=old, mask=mask, advantages=adv, ref_logp=ref,
                segments=SEGMENTS, behavior_logp=old,
            )[0]
            for m in METHODS.values()
        )  # fmt: skip

    for seed in range(3):
        *data, adv = arrays(seed)
        step(*data, adv[:, None] * np.ones((1, T), np.float32), MASK)
    assert len(traces) == 1
