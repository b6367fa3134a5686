"""Policies beside the policy: the roles of a plan, with weights and optimizers of their own.

They stand in `TrainState.aux["roles"]`, begin as copies of the policy and are split over the
devices as it is. A role learns from its completions by GRPO, each prompt's being a group, from what
the plan pays them; nothing of it reaches the policy's update. Letters: P prompts, M completions of
a role for each, T tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Key, PyTree
from numpy import ndarray

from jgrpo import algo
from jgrpo.config import Config
from jgrpo.keys import named_key
from jgrpo.learner.batch import minibatches, unweighted
from jgrpo.learner.optim import make_optimizer
from jgrpo.learner.preference import PREFERENCE
from jgrpo.learner.step import Learner
from jgrpo.places import logps_in_rows, rows_of
from jgrpo.types import Batch, Rollouts, TrainState

ROLES = "roles"
JUDGE = "judge"
"""Under this name a preference model goes with the roles: it is asked, and draws nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleState:
    """What is kept of a role.

    Attributes:
      params: its weights.
      opt_state: state of its optimizer.
    """

    params: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What a role has drawn in a step.

    Attributes:
      rollouts: its completions, each under a context; a plan may have some stand there twice.
      completions: the same as text, prompt by prompt; "" where there is none.
      rewards: what the plan pays them; nan where there is none.
      advantages: relative to the others of their prompt; 0 where there is none.
    """

    rollouts: Rollouts
    completions: Sequence[str]
    rewards: Float[ndarray, "P M"]
    advantages: Float32[ndarray, "P M"]

    @property
    def there(self) -> Bool[ndarray, "P M"]:
        """True where a completion stands."""
        return ~np.isnan(self.rewards)


def role_method(m: algo.Method) -> algo.Method:
    """How a role learns: by GRPO without a penalty, with weights, clips and deviation of `m`.

    Its ratio is that of sequences if the method's is.
    """
    names = ("weights", "constant_length_tokens", "clip_low", "clip_high", "scale_ddof")
    level = m.level if m.level in ("sequence", "sequence_token") else "token"
    return algo.Method(name="grpo", level=level, **{name: getattr(m, name) for name in names})


def written(
    m: algo.Method,
    rollouts: Rollouts,
    completions: Sequence[str],
    rewards: Float[ndarray, "P M"],
) -> Written:
    """The completions of a role with their advantages.

    Args:
      m: the method of the run.
      rollouts: the completions.
      completions: the same as text.
      rewards: what they are paid; nan where there is none.
    """
    there = ~np.isnan(rewards)
    known = jnp.asarray(np.where(there, rewards, 0.0), jnp.float32)
    found = algo.advantages(role_method(m), known, algo.Side(valid=there))
    values = np.asarray(found.values, np.float32)
    return Written(rollouts=rollouts, completions=completions, rewards=rewards, advantages=values)


def role_learners(cfg: Config, learner: Learner) -> dict[str, Learner]:
    """The learner of each role of the plan: the policy's, with another loss and optimizer."""
    optim = dataclasses.replace(cfg.optim, lr=cfg.optim.role_lr)
    method, optimizer = role_method(cfg.method), make_optimizer(optim, cfg.run.steps)
    return {
        name: dataclasses.replace(learner, method=method, optimizer=optimizer, log_entropy=False)
        for name in cfg.plan.roles
    }


def fresh_roles(learners: Mapping[str, Learner], params: PyTree) -> dict[str, RoleState]:
    """Every role as a copy of the policy.

    Args:
      learners: of the roles.
      params: the policy's initial weights.
    """
    states = {name: learner.init(params) for name, learner in learners.items()}
    return {
        name: RoleState(params=state.params, opt_state=state.opt_state)
        for name, state in states.items()
    }


def role_params(state: TrainState) -> dict[str, PyTree]:
    """The weights of each role, and of a frozen preference model with the policy that it reads."""
    found = {name: role.params for name, role in state.aux.get(ROLES, {}).items()}
    if PREFERENCE in state.aux and state.ref_params is not None:
        found[JUDGE] = state.ref_params | {PREFERENCE: state.aux[PREFERENCE]}
    return found


def taught(
    cfg: Config,
    learners: Mapping[str, Learner],
    key: Key[Array, ""],
    state: TrainState,
    drawn: Mapping[str, Written],
    learned: Mapping[str, float],
) -> tuple[TrainState, dict[str, float]]:
    """Makes the updates of every role; one whose minibatch is empty is left out.

    Args:
      cfg: the run's config.
      learners: of the roles.
      key: of the step.
      state: holds the roles; their buffers are donated.
      drawn: what the roles have drawn.
      learned: metrics of the policy's updates.

    Returns:
      The state with new roles, all else as it was, and the metrics with those of the roles.
    """
    if not drawn:
        return state, dict(learned)
    roles, metrics = dict(state.aux[ROLES]), dict(learned)
    for name, this in drawn.items():
        own = dataclasses.replace(
            state, params=roles[name].params, opt_state=roles[name].opt_state, aux={}
        )
        updates = []
        batch = _with_own_logps(cfg, learners[name], own.params, this)
        for epoch in range(cfg.optim.epochs_per_step):
            order = named_key(key, name, "minibatches", epoch)
            for part in minibatches(
                learners[name].method, batch, cfg.optim.minibatches, order, this.there
            ):
                if np.asarray(part.mask).any():
                    rows = rows_of(part, cfg.group_rows, alone=cfg.plan.aligned)
                    in_rows = rows.apart(part)
                    own, told = learners[name].update(own, in_rows)
                    updates.append(told)
        roles[name] = RoleState(params=own.params, opt_state=own.opt_state)
        metrics |= _metrics(name, jax.device_get(updates), metrics)
    return dataclasses.replace(state, aux=state.aux | {ROLES: roles}), metrics


def _with_own_logps(cfg: Config, learner: Learner, params: PyTree, this: Written) -> Batch:
    """The completions of a role as a batch, compared with the role as it was when it drew them."""
    batch = unweighted(this.rollouts, this.there)
    assert this.rollouts.standing is not None
    batch = dataclasses.replace(
        batch,
        advantages=this.advantages[..., None] + np.zeros(batch.mask.shape, np.float32),
        contexts=this.rollouts.standing.contexts,
    )
    if cfg.inexact_sampler and this.there.any():
        found = logps_in_rows(learner, params, batch, cfg.group_rows, alone=cfg.plan.aligned)
        batch = dataclasses.replace(batch, old_logp=found)
    return batch


def _metrics(
    name: str, updates: Sequence[Mapping[str, ndarray]], others: Mapping[str, float]
) -> dict[str, float]:
    """What the updates of a role have shown; also what is told of all updates of a step."""
    mean = lambda of: float(np.mean([u[of] for u in updates])) if updates else 0.0  # noqa: E731
    gap, skipped = "invariant/logp_gap_max", "optim/skipped_updates"
    return {
        f"role/{name}/loss": mean("loss/total"),
        f"role/{name}/grad_norm": mean("grad/norm"),
        f"role/{name}/updates": len(updates),
        gap: max(others[gap], *(float(u[gap]) for u in updates[:1])) if updates else others[gap],
        skipped: others[skipped] + sum(float(u[skipped]) for u in updates),
    }
