"""The result of the advantage slots.

Letters: P prompts, G completions per prompt, B = P*G, T token positions.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantages:
    """What the learner trains with.

    Attributes:
      values: advantage of each completion, or of each token in rows [B, T], group by group; 0 where
        `keep` is False.
      keep: False for rows that must not be trained: take them out of the mask.
      state: the method's state after this batch.
      returns: what a critic should predict before each token, in reward units; None if the method
        has none.
    """

    # The wider form first: it binds no letter that `keep` is held to.
    values: Float[Array, "B T"] | Float[Array, "P G"]
    keep: Bool[Array, "P G"]
    state: PyTree = None
    returns: Float[Array, "B T"] | None = None
