"""From the rewards of a group to a loss: every method as a composition of named pure functions.

Usable alone, in any training loop::

    from jgrpo import algo

    m = algo.method("gspo", clip_low=3e-4)
    adv = algo.advantages(m, rewards)
    loss, metrics = algo.policy_loss(m, logp, old_logp=old_logp, mask=mask,
                                     advantages=adv.values.reshape(-1))
"""

from jgrpo.algo.advantages import Advantages, advantages
from jgrpo.algo.loss import policy_loss
from jgrpo.algo.methods import METHODS, Method, method
from jgrpo.algo.sampling import dynamic_keep
from jgrpo.algo.side import Side
from jgrpo.algo.slots import needs
from jgrpo.algo.weights import token_weights

__all__ = [
    "METHODS",
    "Advantages",
    "Method",
    "Side",
    "advantages",
    "dynamic_keep",
    "method",
    "needs",
    "policy_loss",
    "token_weights",
]
