"""Slots filled by functions of the user's, named by their path."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jgrpo import config_io
from jgrpo.algo import Choice, advantages, method, needs, policy_loss
from jgrpo.algo.trust import Trusted


def halved(m, level, advantages, logp, mask):
    """Phi = rho A / 2."""
    never = jnp.zeros(mask.shape, bool)
    return Trusted(0.5 * jnp.exp(level) * advantages, never, never)


def best_of_group(m, rewards, side, state):
    """A0 = R' - max R'."""
    return rewards - jnp.max(rewards, axis=1, keepdims=True)


def too_few(m, level):
    """Nothing."""


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    module = types.ModuleType("my_slots")
    module.halved, module.best_of_group, module.too_few = halved, best_of_group, too_few
    module.number = 3
    module.needy = Choice(function=best_of_group, formula="A0 = 0", needs=("strata",))
    monkeypatch.setitem(sys.modules, "my_slots", module)


def test_outside_functions_fill_slots_and_say_what_they_do():
    m = method("gspo", trust="my_slots:halved", base="my_slots:best_of_group", scale="none")
    assert "trust='my_slots:halved'" in m.departs
    values = advantages(m, np.array([[1, 0, 3]], np.float32)).values
    assert values.tolist() == [[-2, -3, 0]]
    slope = jax.grad(
        lambda x: policy_loss(
            m, x, old_logp=oracles.FT_OLD, mask=oracles.FT_MASK, advantages=oracles.FT_ADVANTAGES
        )[0]
    )(oracles.FT_OLD)
    np.testing.assert_allclose(slope, [[-1 / 12] * 3, [1 / 8, 1 / 8, 0]], atol=1e-7)


def test_outside_choice_says_what_it_needs():
    assert needs(method("gspo", base="my_slots:needy")) == {"strata"}


def test_slots_are_mixed_in_a_recipe(root):
    """By name and by path; what a slot wants and no run supplies, and a bad path, are named."""
    recipe = root / "configs" / "quickstart.yaml"
    mixed = "method={name: gspo, base: group_median, trust: sapo}"
    m = config_io.load(recipe, [mixed]).method
    assert m == method("gspo", base="group_median", trust="sapo")
    assert "base='group_median' (row: 'group_mean'), trust='sapo' (row: 'clip')" in m.departs
    own = config_io.load(recipe, ["method={name: gspo, trust: 'my_slots:halved'}"]).method
    assert own.trust == "my_slots:halved"
    for words, message in (
        ("method={name: gspo, trust: 'my_slots:halve'}", "cannot load 'my_slots:halve'"),
        ("method={name: gspo, base: group_media}", "did you mean 'group_median'"),
        ("method={name: gspo, base: stratum_mean}", "rollout.stratum_mark"),
        ("method={name: gspo, combine: sum}", "reward.functions: must list at least 2"),
    ):
        with pytest.raises(config_io.ConfigError, match=message):
            config_io.load(recipe, [words])


@pytest.mark.parametrize(
    ("slot", "path", "words"),
    [
        ("trust", "my_slots:halve", ["cannot load 'my_slots:halve'", "halve"]),
        ("trust", "no_such_package.x:f", ["cannot load", "no_such_package"]),
        ("trust", "my_slots:number", ["must be a function or a Choice, got int"]),
        ("trust", "my_slots:too_few", ["(m, level, advantages, logp, mask)", "takes 2"]),
        ("source", "my_slots:halved", ["must be one of the named choices"]),
        ("trust", "halved", ["unknown 'halved'", "known: clip"]),
    ],
)
def test_outside_function_that_does_not_fit_is_refused_before_anything_runs(slot, path, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        method("gspo", **{slot: path})
    for word in words:
        assert word in str(caught.value)
