"""From the rewards of a group to a loss: every method as a composition of named pure functions.

Usable alone, in any training loop, jitted or not:

>>> import jax, jax.numpy as jnp
>>> from jgrpo import algo
>>> m = algo.method("gspo", clip_low=0.1, clip_high=0.1)
>>> rewards = jnp.array([[1.0, 0.0]])  # [prompts, group]
>>> old_logp = jnp.array([[-1.0, -2.0], [-0.5, 0.0]])  # [B, T], B = prompts * group
>>> mask = jnp.array([[True, True], [True, False]])
>>> adv = algo.advantages(m, rewards)
>>> def loss(logp):
...     return algo.policy_loss(
...         m, logp, old_logp=old_logp, mask=mask, advantages=adv.values.reshape(-1)
...     )
>>> gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(old_logp)
>>> [[round(float(x), 3) for x in row] for row in gradient]
[[-0.177, -0.177], [0.354, 0.0]]
"""

from jgrpo.algo.advantages import advantages
from jgrpo.algo.allocation import Estimates, allocation, sequential, tracked_estimates
from jgrpo.algo.choice import Choice
from jgrpo.algo.constraints import constraint_scale
from jgrpo.algo.drawing import draw, known, rarity
from jgrpo.algo.late import coupled_advantages, late_advantages, uncoupled
from jgrpo.algo.loss import policy_loss
from jgrpo.algo.meta import meta_rewards
from jgrpo.algo.methods import METHODS, Method, method
from jgrpo.algo.penalties import sequence_kl
from jgrpo.algo.plans import Guidance, next_guidance, plan
from jgrpo.algo.record import Advantages
from jgrpo.algo.refilling import is_repeat, refill, task_value
from jgrpo.algo.replaying import admitted, all_right, replay
from jgrpo.algo.returns import gae, value_loss
from jgrpo.algo.rounds import Finished, Plan, Ratio, Round, Seen, Want
from jgrpo.algo.sampling import (
    dynamic_keep,
    opposite_pair,
    predicted_trivial,
    uncertainty_weights,
)
from jgrpo.algo.side import Side
from jgrpo.algo.slots import needs
from jgrpo.algo.trackers import init_state
from jgrpo.algo.vetoes import top_entropy
from jgrpo.algo.weights import token_weights

__all__ = [
    "METHODS",
    "Advantages",
    "Choice",
    "Estimates",
    "Finished",
    "Guidance",
    "Method",
    "Plan",
    "Ratio",
    "Round",
    "Seen",
    "Side",
    "Want",
    "admitted",
    "advantages",
    "all_right",
    "allocation",
    "constraint_scale",
    "coupled_advantages",
    "draw",
    "dynamic_keep",
    "gae",
    "init_state",
    "is_repeat",
    "known",
    "late_advantages",
    "meta_rewards",
    "method",
    "needs",
    "next_guidance",
    "opposite_pair",
    "plan",
    "policy_loss",
    "predicted_trivial",
    "rarity",
    "refill",
    "replay",
    "sequence_kl",
    "sequential",
    "task_value",
    "token_weights",
    "top_entropy",
    "tracked_estimates",
    "uncertainty_weights",
    "uncoupled",
    "value_loss",
]
