"""The loss holds a few arrays of [B, T], whatever T is: never one of [B, T, T] or [B, T, V]."""

import jax
import numpy as np
import pytest

from jgrpo.algo import METHODS, needs, policy_loss, token_weights

B = 16
# A segment's level scatters and gathers, in both directions; all else is elementwise and sums.
LIMITS = {"grpo": 10, "gspo": 10, "gmpo": 10, "ctpo": 10, "vespo": 10, "rank_grpo": 20}


def temporaries(m, width):
    """What XLA plans for value and gradient together, in float32 arrays of [B, width]."""
    old = -np.random.default_rng(0).exponential(size=(B, width)).astype(np.float32)
    mask = np.ones(old.shape, bool)
    given = {"old_logp": old, "mask": mask, "advantages": old[:, 0]}
    given |= {"weights": np.asarray(token_weights(m, mask)), "token_share": old}
    given |= {"ref_logp": old} if "ref_logp" in needs(m) else {}
    given |= {"segments": np.zeros(old.shape, np.int32)} if "segments" in needs(m) else {}
    loss = jax.value_and_grad(lambda logp, rest: policy_loss(m, logp, **rest), has_aux=True)
    compiled = jax.jit(loss).lower(old, given).compile()
    return compiled.memory_analysis().temp_size_in_bytes / old.nbytes


@pytest.mark.parametrize("name", LIMITS)
def test_temporaries_are_a_few_arrays_and_do_not_grow_with_the_width(name):
    narrow, wide = (temporaries(METHODS[name], width) for width in (128, 1024))
    assert 0 < wide <= LIMITS[name]
    assert wide < narrow + 5
