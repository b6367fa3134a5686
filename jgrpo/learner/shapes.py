"""The state that a learner begins with, as shapes: what is needed to compile without weights."""

from typing import Any

import jax
import jax.numpy as jnp

from jgrpo.learner import heads
from jgrpo.learner.step import Learner
from jgrpo.parallel.lowered import with_shardings
from jgrpo.parallel.rules import replicated
from jgrpo.types import TrainState


def state_shapes(learner: Learner) -> TrainState:
    """What `Learner.init` returns, as shapes with their shardings; nothing is allocated.

    Args:
      learner: of any mesh, of devices that are there or not.
    """
    head = heads.shapes(learner.method, learner.shapes)
    at = heads.shardings(learner.method, learner.shardings, learner.mesh)
    opt_state = jax.eval_shape(learner.optimizer.init, learner.shapes | head)
    params = with_shardings(learner.shapes, learner.shardings)
    kept = heads.keeps_reference(learner.method) and learner.frozen is None
    zero: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(learner.mesh))
    return TrainState(
        step=zero,
        cursor=zero,
        params=params,
        opt_state=with_shardings(opt_state, learner.opt_shardings),
        ref_params=params if kept else None,
        aux=with_shardings(head, at),
    )
