"""Side information of the advantage slots: everything about a group that is not its reward.

Letters: P prompts, G completions per prompt, K reward columns, T token positions. A field is None
unless a slot of the method needs it (`jgrpo.algo.needs` says which).
"""

import dataclasses
from typing import TypeVar

import jax
from jaxtyping import Bool, Float, Int

from jgrpo.algo.row import Method
from jgrpo.types import AnyArray

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """What advantages may depend on besides the rewards.

    Attributes:
      lengths: trained tokens of each completion.
      max_completion_tokens: the run's limit on them; static.
      step: number of the step, from 0.
      sequence_kl: the KL penalty summed over a completion's tokens, from `sequence_kl`, in nats.
      valid: True where the reward counts; other rows enter no statistic and get advantage 0.
      correct: the outcome alone, where rewards also hold other terms; `dynamic_keep` filters on it.
      mean_logp: mean old log-prob of a completion's tokens, in nats.
      strata: completions are compared within the stratum of this number.
      reference: True for rows that are worked solutions, not sampled.
      applicable: True where a reward column says something about a completion.
      prompt_ids: number of each prompt in the data set; indexes the tracker's state.
      prior: predicted mean reward of each prompt, in reward units; nan where there is none.
      drift: mean |logp then - logp now| over the prompt's previous completion, 0 if there is none.
      mask: True at trained tokens.
      tokens: token ids.
      token_kl: old_logp - ref_logp of each token, in nats.
      values: predicted return before each token, from a critic, in reward units.
      segments: item that each token belongs to, from 0; below 0 none.
      answer_logp: mean log-prob under the reference policy of the tokens of a completion's last
        segment, in nats.
      prefix_scores: a preference model's score of the prompt and the tokens before each token.
      truncated: True for completions that the length limit cut off.
      non_incorrect: False for completions that were judged to be wrong.
      repeats: True for completions whose end says the same once more (`is_repeat`).
      chance: a uniform draw from [0, 1) for each completion.
      skilled: True for completions that worked with a skill.
    """

    lengths: Int[AnyArray, "P G"] | None = None
    max_completion_tokens: int | None = dataclasses.field(default=None, metadata={"static": True})
    step: Int[AnyArray, ""] | None = None
    sequence_kl: Float[AnyArray, "P G"] | None = None
    valid: Bool[AnyArray, "P G"] | None = None
    correct: Bool[AnyArray, "P G"] | None = None
    mean_logp: Float[AnyArray, "P G"] | None = None
    strata: Int[AnyArray, "P G"] | None = None
    reference: Bool[AnyArray, "P G"] | None = None
    applicable: Bool[AnyArray, "P G K"] | None = None
    prompt_ids: Int[AnyArray, " P"] | None = None
    prior: Float[AnyArray, " P"] | None = None
    drift: Float[AnyArray, " P"] | None = None
    mask: Bool[AnyArray, "P G T"] | None = None
    tokens: Int[AnyArray, "P G T"] | None = None
    token_kl: Float[AnyArray, "P G T"] | None = None
    values: Float[AnyArray, "P G T"] | None = None
    segments: Int[AnyArray, "P G T"] | None = None
    prefix_scores: Float[AnyArray, "P G T"] | None = None
    answer_logp: Float[AnyArray, "P G"] | None = None
    truncated: Bool[AnyArray, "P G"] | None = None
    non_incorrect: Bool[AnyArray, "P G"] | None = None
    repeats: Bool[AnyArray, "P G"] | None = None
    chance: Float[AnyArray, "P G"] | None = None
    skilled: Bool[AnyArray, "P G"] | None = None


def required(value: T | None, name: str, m: Method) -> T:
    """The value, which the method cannot do without.

    Raises:
      ValueError: if it is None.
    """
    if value is None:
        raise ValueError(f"method {m.name!r} needs side.{name}: pass Side({name}=...)")
    return value
