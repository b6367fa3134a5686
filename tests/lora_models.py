"""Small models with adapters that add something, and the parts of a run built from them."""

import functools

import jax
import optax
from small_models import PLAIN, mesh, model

from jgrpo.learner.step import Learner
from jgrpo.models import lora
from jgrpo.models.architecture import INPUT_DIMS, logical_axes
from jgrpo.parallel.rules import param_shardings

MATRICES = tuple(INPUT_DIMS)
RANK = 3
SCALE = 0.75


@functools.cache
def adapters(family="llama", matrices=MATRICES):
    """Adapters of which neither half is zero."""
    arch, _, _ = model(family)
    fresh = lora.fresh_adapters(arch, matrices, RANK, jax.random.key(5), "float32")
    leaves, structure = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(6), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in pairs]
    return jax.tree.unflatten(structure, noisy)


@functools.cache
def frozen(family="llama", bits="none", matrices=MATRICES):
    """Weights of the small model with places for adapters."""
    return lora.frozen(model(family)[2], matrices, scale=SCALE, bits=bits)


def adapted_learner(bits="none", *, devices=1, fsdp=1, method=PLAIN, optimizer=None, **settings):
    """A learner of adapters, by default of plain gradient descent: its step is the gradient."""
    arch, graphdef, _ = model("llama")
    base, made, where = frozen(bits=bits), adapters(), mesh(devices, fsdp)
    places = param_shardings(where, logical_axes(arch), jax.eval_shape(lambda: base))
    shapes = jax.eval_shape(lambda: made)
    return Learner(
        graphdef=graphdef,
        method=method,
        optimizer=optimizer or optax.sgd(1.0),
        mesh=where,
        shapes=shapes,
        shardings=param_shardings(where, lora.adapter_axes(arch, MATRICES), shapes),
        frozen=jax.device_put(base, places),
        **settings,
    )
