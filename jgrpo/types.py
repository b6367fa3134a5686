"""The records that flow from one stage to the next.

Letters: P prompts, G completions per prompt (a group), T completion tokens, Lp prompt tokens,
B = P*G. Prompts are padded on the left, so that the last prompt token of every row stands at index
Lp - 1; completions are padded on the right. Records of arrays are pytrees and may hold numpy or
jax arrays.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped
from numpy import ndarray

Message: TypeAlias = Mapping[str, str]
AnyArray: TypeAlias = Array | ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a task, as text: what is asked and how it is checked. Never enters a jit.

    Attributes:
      prompt: plain text, or a list of chat messages with `role` and `content`.
      answer: the reference answer that rewards compare with; "" if the task has none.
      solution: a worked reference completion (it ends in the answer), or None.
      columns: every further field of the row; handed to the reward functions by name.
    """

    prompt: str | list[Message]
    answer: str = ""
    solution: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Tokenised prompts of one rollout.

    Attributes:
      uid: number of the prompt in the run's order; names the noise of its completions, so that
        a completion does not depend on the row, batch or device it was drawn in.
      tokens: token ids, padded on the left.
      mask: True at real tokens.
    """

    uid: Int[AnyArray, " P"]
    tokens: Int[AnyArray, "P Lp"]
    mask: Bool[AnyArray, "P Lp"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What the sampler drew for each prompt, with the log-probs it drew it at.

    Attributes:
      prompts: the prompts asked.
      tokens: completion ids, the terminating EOS included; padding after it is arbitrary.
      mask: True at tokens that belong to the completion.
      behavior_logp: log-prob (nats) of each token under the sampling weights and temperature,
        over the full vocabulary; 0 where `mask` is False.
      finished: True if the completion ended itself (EOS or stop string), False if cut off.
    """

    prompts: Prompts
    tokens: Int[AnyArray, "P G T"]
    mask: Bool[AnyArray, "P G T"]
    behavior_logp: Float[AnyArray, "P G T"]
    finished: Bool[AnyArray, "P G"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What one update trains on. Everything batch-scoped has been computed before sharding.

    Attributes:
      prompts: one row per group.
      tokens: completion ids.
      mask: True at trained tokens.
      weights: aggregation weight of each token over the global batch (the loss is a plain sum).
      advantages: advantage of each token, in units of the method's scale.
      old_logp: log-prob of each token under the weights at the start of the step.
      unit_ratio: True for completions whose old log-probs are the policy's own, whatever it is, so
        that their ratio is 1 (worked solutions, which nobody sampled); None: there are none.
      ref_logp: log-prob under the reference model, or None if no slot needs it.
      behavior_logp: log-prob at which the sampler drew each token, or None if no slot needs it.
      segments: number of the segment of each token, -1 where there is none, or None likewise.
    """

    prompts: Prompts
    tokens: Int[AnyArray, "P G T"]
    mask: Bool[AnyArray, "P G T"]
    weights: Float[AnyArray, "P G T"]
    advantages: Float[AnyArray, "P G T"]
    old_logp: Float[AnyArray, "P G T"]
    unit_ratio: Bool[AnyArray, "P G"] | None = None
    ref_logp: Float[AnyArray, "P G T"] | None = None
    behavior_logp: Float[AnyArray, "P G T"] | None = None
    segments: Int[AnyArray, "P G T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a run must remember: sampled from, trained, sharded, donated, checkpointed.

    Attributes:
      step: number of finished steps.
      cursor: number of prompts taken from the run's prompt order so far.
      params: the policy's weights (float32 master copy unless configured otherwise).
      opt_state: the optimizer's state.
      ref_params: the frozen reference policy, or None if no slot of the method needs it.
      strategy: state of the method's stateful slots; an empty dict for stateless methods.
      aux: further memory of the run by name.
    """

    step: Int[AnyArray, ""]
    cursor: Int[AnyArray, ""]
    params: PyTree[Shaped[AnyArray, "..."]]
    opt_state: PyTree
    ref_params: PyTree | None = None
    strategy: PyTree = dataclasses.field(default_factory=dict)
    aux: PyTree = dataclasses.field(default_factory=dict)
