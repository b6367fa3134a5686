"""The optimizer: AdamW with a learning-rate schedule and global-norm clipping, from optax."""

import jax
import optax
from jaxtyping import PyTree

from jgrpo.config import OptimConfig


def updates_per_step(cfg: OptimConfig) -> int:
    """Number of optimizer updates in one step."""
    return cfg.epochs_per_step * cfg.minibatches


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates done.

    Args:
      cfg: the `optim` section; its warm-up is counted in steps.
      steps: steps of the whole run; a decay reaches its floor after the last.
    """
    each = updates_per_step(cfg)
    warmup, total = cfg.warmup_steps * each, steps * each
    final = cfg.lr * cfg.final_lr_ratio
    decay_updates = max(1, total - warmup)
    after = {
        "constant": optax.constant_schedule(cfg.lr),
        "linear": optax.linear_schedule(cfg.lr, final, decay_updates),
        "cosine": optax.cosine_decay_schedule(cfg.lr, decay_updates, cfg.final_lr_ratio),
    }[cfg.schedule]
    if warmup == 0:
        return after
    # Update number 0 already moves: the ramp starts one part above zero.
    ramp = optax.linear_schedule(cfg.lr / warmup, cfg.lr, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW behind a global-norm clip; weight decay acts on matrices only.

    Args:
      cfg: the `optim` section.
      steps: steps of the whole run.
    """
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(
            learning_rate(cfg, steps),
            b1=cfg.beta1,
            b2=cfg.beta2,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            mask=_is_matrix,
        ),
    )


def _is_matrix(params: PyTree) -> PyTree:
    # By name, not by rank: stacked over layers, a norm's scale has two dims too.
    def named(path, _) -> bool:
        name = path[-1].key
        return not (name.endswith("norm") or name.endswith("bias"))

    return jax.tree_util.tree_map_with_path(named, params)
