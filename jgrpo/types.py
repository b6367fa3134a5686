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
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt
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
      experts: numbers of the experts that each layer took for each token, k of them, where they are
        to be taken again; else None.
    """

    uid: Int[AnyArray, " P"]
    tokens: Int[AnyArray, "P Lp"]
    mask: Bool[AnyArray, "P Lp"]
    experts: UInt[AnyArray, "P Lp L k"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contexts:
    """Further prompts of each group, C at most, that some of its completions belong to.

    Attributes:
      tokens: token ids, padded on the left.
      mask: True at real tokens; a context that a group does not have has none.
      asked: which one a completion was sampled under, from 1; 0: the group's own prompt.
      trained: which one it is trained under, likewise.
    """

    tokens: Int[AnyArray, "P C Lc"]
    mask: Bool[AnyArray, "P C Lc"]
    asked: Int[AnyArray, "P G"]
    trained: Int[AnyArray, "P G"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """How completions stand in their groups, where a plan has more than one round.

    Attributes:
      round: number of the round that drew it, from 1.
      level: which hint, draft or skill (its number in the cache) its prompt holds; 0: none.
      ratio: what its policy is compared with (`algo.Ratio`).
      likelihood: above 0: trained by its likelihood, with this weight.
      weight: factor of its gradient; 0: not trained.
      counted: whether it counts in the statistics of its group.
      replaced: whether it stands where another had been drawn.
      again: whether its group was asked again.
      contexts: further prompts, or None if there are none.
    """

    round: Int[AnyArray, "P G"]
    level: Int[AnyArray, "P G"]
    ratio: Int[AnyArray, "P G"]
    likelihood: Float[AnyArray, "P G"]
    weight: Float[AnyArray, "P G"]
    counted: Bool[AnyArray, "P G"]
    replaced: Bool[AnyArray, "P G"]
    again: Bool[AnyArray, "P G"]
    contexts: Contexts | None = None


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
      injected: True at tokens of the completion that nobody drew (guidance); None: there are none.
      standing: how completions stand in their groups; None: each as it was drawn, in one round.
      experts: numbers of the experts that each layer took where each token was predicted: for the
        token before it, or the last one of the prompt; None where nobody asks.
    """

    prompts: Prompts
    tokens: Int[AnyArray, "P G T"]
    mask: Bool[AnyArray, "P G T"]
    behavior_logp: Float[AnyArray, "P G T"]
    finished: Bool[AnyArray, "P G"]
    injected: Bool[AnyArray, "P G T"] | None = None
    standing: Standing | None = None
    experts: UInt[AnyArray, "P G T L k"] | None = None


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
      unit_ratio: True at tokens whose old log-probs are the policy's own, whatever it is, so that
        their ratio is 1 (worked solutions and guidance, which nobody drew); None: there are none.
      off_policy: True at tokens whose ratio is reshaped and not clipped, since another law than the
        old policy's drew them; None: there are none.
      contexts: further prompts of each group, which some completions are trained under, or None.
      ref_logp: log-prob under the reference model, or None if no slot needs it.
      behavior_logp: log-prob at which the sampler drew each token, or None if no slot needs it.
      segments: number of the segment of each token, -1 where there is none, or None likewise.
      old_values: what the critic predicted before each token at the start of the step, in reward
        units, or None if there is no critic.
      returns: what the critic should predict there, or None likewise.
      entropy_mask: True at tokens whose entropy is in the top quantile of the step, or None if no
        slot needs it.
      score_weights: weight in the loss of the preference model's score before each token, or None
        if it is not trained.
      experts: numbers of the experts that each layer takes where a token is predicted, as in
        `Rollouts`; None: those that its router picks.
    """

    prompts: Prompts
    tokens: Int[AnyArray, "P G T"]
    mask: Bool[AnyArray, "P G T"]
    weights: Float[AnyArray, "P G T"]
    advantages: Float[AnyArray, "P G T"]
    old_logp: Float[AnyArray, "P G T"]
    unit_ratio: Bool[AnyArray, "P G T"] | None = None
    off_policy: Bool[AnyArray, "P G T"] | None = None
    contexts: Contexts | None = None
    ref_logp: Float[AnyArray, "P G T"] | None = None
    behavior_logp: Float[AnyArray, "P G T"] | None = None
    segments: Int[AnyArray, "P G T"] | None = None
    old_values: Float[AnyArray, "P G T"] | None = None
    returns: Float[AnyArray, "P G T"] | None = None
    entropy_mask: Bool[AnyArray, "P G T"] | None = None
    score_weights: Float[AnyArray, "P G T"] | None = None
    experts: UInt[AnyArray, "P G T L k"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a run must remember: sampled from, trained, sharded, donated, checkpointed.

    Attributes:
      step: number of finished steps.
      cursor: number of prompts taken from the run's prompt order so far.
      params: the policy's weights (float32 master copy unless configured otherwise).
      opt_state: the optimizer's state.
      ref_params: the frozen reference policy, or None if no slot of the method needs it (the
        preference model reads its hidden states).
      strategy: state of the method's stateful slots by name (`tracker`, `guidance`, `replay`,
        `skills`); empty for stateless methods.
      aux: further memory of the run by name; `roles`: policies beside the policy.
    """

    step: Int[AnyArray, ""]
    cursor: Int[AnyArray, ""]
    params: PyTree[Shaped[AnyArray, "..."]]
    opt_state: PyTree
    ref_params: PyTree | None = None
    strategy: PyTree = dataclasses.field(default_factory=dict)
    aux: PyTree = dataclasses.field(default_factory=dict)
