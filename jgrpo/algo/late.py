"""LATE: losses that couple the completions of a group, as advantages of single tokens.

Letters: P prompts, G completions per prompt, B = P*G, T token positions. A loss F(s_1 .. s_G) of
per-completion scores has the gradient of sum_i c_i s_i with c_i = sg(dF/ds_i). So one pass without
gradient over whole groups gives every token its advantage; the pass with gradient is the ordinary
weighted sum with trust `linear`, and microbatches add up exactly. Every choice has the signature
`Late` and returns the loss of the batch, to be minimised.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.constraints import drift, hinge
from jgrpo.algo.levels import token_log_ratio
from jgrpo.algo.row import Method
from jgrpo.algo.weights import token_weights
from jgrpo.types import AnyArray


class Scored(NamedTuple):
    """Log-probs of whole groups, 0 where the mask is False.

    Attributes:
      logp: under the policy.
      log_ratio: logp - old_logp, clamped to [-20, 20].
      mask: True at trained tokens.
    """

    logp: Float[Array, "P G T"]
    log_ratio: Float[Array, "P G T"]
    mask: Bool[Array, "P G T"]


Late: TypeAlias = Callable[[Method, Scored, Float[Array, "P G"]], Float[Array, ""]]


def late_advantages(
    m: Method,
    logp: Float[AnyArray, "B T"],
    *,
    old_logp: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    targets: Float[AnyArray, "P G"],
    weights: Float[AnyArray, "B T"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, ""]]:
    """Token advantages of a method whose loss couples the completions of a group.

    They are the negative gradient of that loss by logp over the weight of the token, so that
    `policy_loss` with the same weights has its gradient. Compute them anew for every update.

    Args:
      m: the method; its `late` slot is the loss.
      logp: log-probs (nats) under the policy that is about to be updated, for whole groups.
      old_logp: the same under the weights at the start of the step.
      mask: True at trained tokens.
      targets: what `advantages` returned: labels of 0 and 1, or the advantages to regress on.
      weights: weight of each token; default `token_weights(m, mask)`.

    Returns:
      Advantages for `policy_loss`, and the value of the loss.

    Raises:
      ValueError: if the method has no such loss, or the shapes do not fit.
    """
    if m.late == "none":
        raise ValueError(
            f"method {m.name!r} does not couple completions: take `advantages` as they are"
        )
    if targets.shape[0] * targets.shape[1] != logp.shape[0]:
        raise ValueError(
            f"targets has shape {targets.shape}, but logp {logp.shape}: there must be one row of "
            "logp per target, group by group"
        )
    steps = jnp.asarray(mask)
    clean = jnp.where(steps, jnp.asarray(logp).astype(jnp.float32), 0.0)
    old = jnp.where(steps, jnp.asarray(old_logp).astype(jnp.float32), 0.0)
    weight = token_weights(m, steps) if weights is None else jnp.asarray(weights)
    goals = jnp.asarray(targets).astype(jnp.float32)
    shape = (*goals.shape, steps.shape[1])

    def loss(lp: Float[Array, "B T"]) -> Float[Array, ""]:
        d = token_log_ratio(lp, old)
        scored = Scored(lp.reshape(shape), d.reshape(shape), steps.reshape(shape))
        return chosen(LATES, m.late).function(m, scored, goals)

    value, slope = jax.value_and_grad(loss)(clean)
    trained = steps & (weight > 0)
    return jnp.where(trained, -slope / jnp.where(trained, weight, 1.0), 0.0), value


def coupled_advantages(
    m: Method,
    logp: Float[AnyArray, "B T"],
    *,
    old_logp: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    advantages: Float[AnyArray, "P G"],
    weights: Float[AnyArray, "B T"],
) -> Float[Array, "B T"]:
    """Advantages of an update in which the late loss and the constraint have become plain numbers.

    Before an update both are known at the weights that are about to move, and their gradient is
    linear in logp there. So `uncoupled(m)` with these advantages has the gradient of `m`, and its
    microbatches add up exactly.

    Args:
      m: a method with a late loss, a constraint, or both.
      logp: log-probs (nats) under the policy that is about to be updated, for whole groups.
      old_logp: the same under the weights at the start of the step.
      mask: True at trained tokens.
      advantages: what `advantages` returned; the targets of the late loss.
      weights: weight of each token.
    """
    steps, weight = jnp.asarray(mask), jnp.asarray(weights)
    if m.late == "none":
        flat = jnp.asarray(advantages).astype(jnp.float32).reshape(-1, 1)
        values = jnp.where(steps, flat, 0.0)
    else:
        values, _ = late_advantages(
            m, logp, old_logp=old_logp, mask=steps, targets=advantages, weights=weight
        )
    if m.constraint == "none":
        return values
    drifted, slope = jax.value_and_grad(lambda lp: drift(m, lp, old_logp=old_logp, mask=steps))(
        jnp.asarray(logp).astype(jnp.float32)
    )
    slope = hinge(m, drifted) * slope
    trained = steps & (weight > 0)
    return values - jnp.where(trained, slope / jnp.where(trained, weight, 1.0), 0.0)


def uncoupled(m: Method) -> Method:
    """The method as it trains on `coupled_advantages`: nothing couples its rows any more."""
    return dataclasses.replace(m, late="none", constraint="none")


def disco(m: Method, scored: Scored, targets: Float[Array, "P G"]) -> Float[Array, ""]:
    """Raises mean log-probs of right over wrong completions; the likeliest wrong ones weigh most.

    -mean over prompts of (mean_right s - tau log mean_wrong exp(s / tau)), s the mean log-prob of
    the tokens, tau = `score_tau`. Prompts without right or without wrong ones add 0; rewards other
    than exactly 1 and 0 are ignored.

    References:
      DisCO, arXiv:2505.12366, `disco_logL`. Departs: none.
    """
    return _discriminative(m, _mean(scored, scored.logp), scored, targets)


def disco_b(m: Method, scored: Scored, targets: Float[Array, "P G"]) -> Float[Array, ""]:
    """As `disco` with the plain mean over the wrong completions.

    References:
      DisCO-b, arXiv:2505.12366, `discob_logL`. Departs: none.
    """
    right, wrong = _labels(scored, targets)
    score = _mean(scored, scored.logp)
    gap = _part_mean(score, right) - _part_mean(score, wrong)
    both = jnp.any(right, axis=1) & jnp.any(wrong, axis=1)
    return -jnp.mean(jnp.where(both, gap, 0.0))


def disco_ratio(m: Method, scored: Scored, targets: Float[Array, "P G"]) -> Float[Array, ""]:
    """As `disco` with the mean ratio to the old policy as score.

    References:
      DisCO, arXiv:2505.12366, `disco_Lratio`. Departs: none.
    """
    ratio = jnp.where(scored.mask, jnp.exp(scored.log_ratio), 0.0)
    return _discriminative(m, _mean(scored, ratio), scored, targets)


def drpo(m: Method, scored: Scored, targets: Float[Array, "P G"]) -> Float[Array, ""]:
    """As `disco`, with right completions weighed by a softmax of how short they are.

    omega = softmax over the right ones of (1 - n / length_limit_tokens) / length_lambda.

    References:
      DRPO, arXiv:2510.04474. Departs: the length limit is a constant, not the padded width.
    """
    right, _ = _labels(scored, targets)
    lengths = jnp.sum(scored.mask, axis=2).astype(jnp.float32)
    brevity = (1.0 - lengths / max(m.length_limit_tokens, 1)) / max(m.length_lambda, 1e-6)
    # Where nothing is right any finite exponent will do: the group is taken out later.
    anything = right | ~jnp.any(right, axis=1, keepdims=True)
    omega = jax.nn.softmax(jnp.where(anything, brevity, -jnp.inf), axis=1)
    return _discriminative(m, _mean(scored, scored.logp), scored, targets, omega)


def regression(m: Method, scored: Scored, targets: Float[Array, "P G"]) -> Float[Array, ""]:
    """Squared distance of the z-scored sequence log-ratios from the advantages.

    mean_i (A_i - (rho_i - mean rho) / (std rho + scale_eps))^2, rho_i = sum_t d_it. Where all rho
    of a group are equal (the first update) the residual takes rho - mean rho without division.
    Groups whose advantages are all 0 are skipped.

    References:
      Reg-GRPO (DeepVideo-R1), arXiv:2506.07464. Departs: ddof and eps are assumed.
    """
    counted = jnp.any(scored.mask, axis=2)
    number = jnp.sum(counted, axis=1, keepdims=True).astype(jnp.float32)
    total = jnp.sum(scored.log_ratio, axis=2)
    mean = jnp.sum(total, axis=1, keepdims=True) / jnp.maximum(number, 1.0)
    away = jnp.where(counted, total - mean, 0.0)
    squares = jnp.sum(jnp.square(away), axis=1, keepdims=True)
    variance = squares / jnp.maximum(number - m.scale_ddof, 1.0)
    varied = variance > 0
    width = jnp.where(varied, jnp.sqrt(jnp.where(varied, variance, 1.0)) + m.scale_eps, 1.0)
    active = counted & jnp.any(counted & (targets != 0), axis=1, keepdims=True)
    errors = jnp.where(active, jnp.square(targets - away / width), 0.0)
    return jnp.sum(errors) / jnp.maximum(jnp.sum(number), 1.0)


def _discriminative(
    m: Method,
    score: Float[Array, "P G"],
    scored: Scored,
    targets: Float[Array, "P G"],
    omega: Float[Array, "P G"] | None = None,
) -> Float[Array, ""]:
    right, wrong = _labels(scored, targets)
    above = _part_mean(score, right) if omega is None else jnp.sum(omega * score, axis=1)
    tau = max(m.score_tau, 1e-6)
    number = _count(wrong)
    # Groups without a wrong completion: any finite score will do, they are taken out below.
    anything = wrong | ~jnp.any(wrong, axis=1, keepdims=True)
    below = jax.nn.logsumexp(jnp.where(anything, score / tau, -jnp.inf), axis=1) - jnp.log(number)
    both = jnp.any(right, axis=1) & jnp.any(wrong, axis=1)
    return -jnp.mean(jnp.where(both, above - tau * below, 0.0))


def _labels(
    scored: Scored, targets: Float[Array, "P G"]
) -> tuple[Bool[Array, "P G"], Bool[Array, "P G"]]:
    filled = jnp.any(scored.mask, axis=2)
    return filled & (targets == 1.0), filled & (targets == 0.0)


def _mean(scored: Scored, x: Float[Array, "P G T"]) -> Float[Array, "P G"]:
    lengths = jnp.maximum(jnp.sum(scored.mask, axis=2), 1).astype(jnp.float32)
    return jnp.sum(x, axis=2) / lengths


def _part_mean(x: Float[Array, "P G"], part: Bool[Array, "P G"]) -> Float[Array, " P"]:
    return jnp.sum(jnp.where(part, x, 0.0), axis=1) / _count(part)


def _count(part: Bool[Array, "P G"]) -> Float[Array, " P"]:
    return jnp.maximum(jnp.sum(part, axis=1), 1).astype(jnp.float32)


def separate(m: Method, scored: Scored, targets: Float[Array, "P G"]) -> Float[Array, ""]:
    """No coupling: nothing to add."""
    return jnp.zeros((), jnp.float32)


_PAIRS = ("Rewards must be exactly 0 or 1; others are ignored.",)
_HARD = "J = mean over prompts of (mean_right s - score_tau log mean_wrong exp(s / score_tau))"
LATES: Mapping[str, Choice[Late]] = {
    "none": Choice(function=separate, formula="completions are not coupled"),
    "disco": Choice(
        function=disco,
        formula=f"A_it w_it = dJ/dlp_it, {_HARD}, s = mean_t lp",
        constants=("score_tau",),
        needs=("late",),
        watch=("kl/old",),
        pitfalls=_PAIRS,
    ),
    "disco_b": Choice(
        function=disco_b,
        formula="A_it w_it = dJ/dlp_it, J = mean over prompts of (mean_right s - mean_wrong s),"
        " s = mean_t lp",
        needs=("late",),
        watch=("kl/old",),
        pitfalls=_PAIRS,
    ),
    "disco_ratio": Choice(
        function=disco_ratio,
        formula=f"A_it w_it = dJ/dlp_it, {_HARD}, s = mean_t e^d",
        constants=("score_tau",),
        needs=("late",),
        watch=("kl/old",),
        pitfalls=(*_PAIRS, "score_tau of 10 is for log-probs; take 1 here."),
    ),
    "drpo": Choice(
        function=drpo,
        formula=f"A_it w_it = dJ/dlp_it, {_HARD.replace('mean_right s', 'sum_right omega s')},"
        " s = mean_t lp, omega = softmax_right((1 - n / length_limit_tokens) / length_lambda)",
        constants=("score_tau", "length_lambda", "length_limit_tokens"),
        needs=("late",),
        watch=("kl/old", "completion/length_mean"),
        pitfalls=_PAIRS,
    ),
    "regression": Choice(
        function=regression,
        formula="A_it w_it = -dF/dlp_it, F = mean_i (A_i - (rho_i - mean rho) / (std rho +"
        " scale_eps))^2, rho_i = sum_t d_it",
        constants=("scale_eps", "scale_ddof"),
        needs=("late",),
        watch=("kl/old", "grad/norm"),
        pitfalls=("The first update of a step is centred only, without division.",),
    ),
}
