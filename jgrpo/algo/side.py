"""Side information of the advantage slots: everything about a group that is not its reward.

Letters: P prompts, G completions per prompt. A field is None unless a slot of the method needs it
(`jgrpo.algo.needs` says which).
"""

import dataclasses
from typing import TypeVar

import jax
from jaxtyping import Bool, Float, Int

from jgrpo.algo.methods import Method
from jgrpo.types import AnyArray

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """What advantages may depend on besides the rewards.

    Attributes:
      lengths: trained tokens of each completion.
      max_completion_tokens: the run's limit on them; static.
      sequence_kl: sum over a completion's tokens of logp - ref_logp, in nats.
      valid: True where the reward counts; other rows enter no statistic and get advantage 0.
      correct: the outcome alone, where rewards also hold other terms; `dynamic_keep` filters on it.
    """

    lengths: Int[AnyArray, "P G"] | None = None
    max_completion_tokens: int | None = dataclasses.field(default=None, metadata={"static": True})
    sequence_kl: Float[AnyArray, "P G"] | None = None
    valid: Bool[AnyArray, "P G"] | None = None
    correct: Bool[AnyArray, "P G"] | None = None


def required(value: T | None, name: str, m: Method) -> T:
    """The value, which the method cannot do without.

    Raises:
      ValueError: if it is None.
    """
    if value is None:
        raise ValueError(f"method {m.name!r} needs side.{name}: pass Side({name}=...)")
    return value
