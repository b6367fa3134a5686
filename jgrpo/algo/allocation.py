"""ALLOCATE: how many completions each prompt gets, from what is known of its success rate.

Letters: P prompts. Numpy in float64 on the host: counts decide shapes, so nothing here is traced.
Every choice has the signature `Allocate`. After an unequal allocation groups differ in size, and
`Side.valid` says which rows of [P, G] exist.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int, PyTree
from numpy import ndarray

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method
from jgrpo.algo.trackers import tracked_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimates:
    """What is known about the prompts of a batch before the next round of sampling.

    Attributes:
      success: predicted success rate of each prompt, in [0, 1]; nan where unknown.
      sampled: completions of each prompt so far.
      mean: mean reward of those.
      deviation: sample standard deviation of those rewards.
      prior: predicted mean reward of each prompt, in reward units; nan where unknown.
    """

    success: Float[ndarray, " P"] | None = None
    sampled: Int[ndarray, " P"] | None = None
    mean: Float[ndarray, " P"] | None = None
    deviation: Float[ndarray, " P"] | None = None
    prior: Float[ndarray, " P"] | None = None


Allocate: TypeAlias = Callable[[Method, Estimates, int], Int[ndarray, " P"]]


def allocation(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """How many completions each prompt gets in the next round.

    Args:
      m: the method.
      estimates: what its `allocate` slot reads.
      budget: completions to be given out in all.

    Raises:
      ValueError: if an estimate is missing, the budget does not reach the least of each prompt, or
        a function of your own gives out more than there is.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> allocation(METHODS["v0"], Estimates(success=np.array([0.1, 0.5, 0.9])), 12).tolist()
      [2, 8, 2]
    """
    counts = np.asarray(chosen(ALLOCATES, m.allocate).function(m, estimates, budget))
    if (counts < 0).any() or counts.sum() > budget:
        raise ValueError(
            f"method {m.name!r}: allocate {m.allocate!r} gave {counts.tolist()}, which must not be "
            f"negative and add up to at most {budget}"
        )
    return counts


def sequential(m: Method) -> bool:
    """True if the method allocates again and again, by the rewards that have come so far."""
    return m.allocate in ("v0_5", "xrpo")


def tracked_estimates(
    m: Method,
    state: PyTree,
    prompt_ids: Int[ndarray, " P"],
    *,
    rewards: Float[ndarray, "P G"] | None = None,
    sampled: Int[ndarray, " P"] | None = None,
) -> Estimates:
    """What the method's tracker and the rewards of this step so far say about some prompts.

    Args:
      m: the method; its tracker is `success` or `beta`, or it allocates by rewards alone.
      state: the tracker's state.
      prompt_ids: the prompts.
      rewards: those of the completions sampled in this step, nan elsewhere; None: there are none.
      sampled: the number of those completions, whether or not they have a reward; default: of those
        that have.

    Returns:
      The tracked mean reward as prior, and as success rate once `min_value` and `max_value` are
      mapped to 0 and 1; nan for prompts never asked.
    """
    number = len(prompt_ids)
    prior = np.full(number, np.nan)
    if m.tracker in ("success", "beta"):
        value, seen = tracked_values(m, state, prompt_ids)
        prior = np.where(np.asarray(seen), np.asarray(value, np.float64), np.nan)
    if rewards is None:
        rewards = np.full((number, 1), np.nan)
    given = ~np.isnan(rewards)
    number_given = given.sum(axis=1)
    mean = np.where(given, rewards, 0.0).sum(axis=1) / np.maximum(number_given, 1)
    away = np.where(given, rewards - mean[:, None], 0.0)
    return Estimates(
        success=np.clip((prior - m.min_value) / (m.max_value - m.min_value), 0.0, 1.0),
        sampled=number_given if sampled is None else sampled,
        mean=mean,
        deviation=np.sqrt(np.square(away).sum(axis=1) / np.maximum(number_given - 1, 1)),
        prior=prior,
    )


def uniform(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """The same number for each prompt; what is left over goes to the first ones.

    Raises:
      ValueError: if no field of the estimates is given, so that the prompts cannot be counted.
    """
    given = [x for x in vars(estimates).values() if x is not None]
    if not given:
        raise ValueError("allocation needs an estimate to count the prompts by: set sampled=0s")
    number = len(given[0])
    return budget // number + (np.arange(number) < budget % number)


def knapsack(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """Spends the budget where a useful gradient is likely.

    Maximises sum p (1 - p)^2 (1 - p^N - (1 - p)^N). The value is concave in N, so taking the
    largest gain again and again is exact. What solved and mid-difficulty prompts cannot take goes
    to those never solved, then to those always solved. Unknown prompts get an equal share.

    References:
      Knapsack RL, arXiv:2509.25849. Departs: greedy in place of dynamic programming (the same
      result); the share of unknown prompts is assumed.
    """

    def among(p: Float[ndarray, " K"], left: int) -> Int[ndarray, " K"]:
        def gain(n: Int[ndarray, " K"]) -> Float[ndarray, " K"]:
            value = p * (1 - p) ** 2 * (p**n * (1 - p) + (1 - p) ** n * p)
            return np.where(p >= 1, -1.0, value)

        return _greedy(m, len(p), left, gain)

    return _among_known(m, estimates, budget, among)


def v0(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """Spends the budget on expected wrong completions that come with a right one, greedily.

    Utility B (1 - p) (1 - (1 - p)^(B - 1)). It is not concave at small p, so this can starve hard
    prompts: `v0_exact` does not. Unknown prompts get an equal share.

    References:
      V0, arXiv:2602.03584. Departs: the share of unknown prompts is assumed.
    """

    def among(p: Float[ndarray, " K"], left: int) -> Int[ndarray, " K"]:
        return _greedy(m, len(p), left, lambda n: _utility(p, n + 1) - _utility(p, n))

    return _among_known(m, estimates, budget, among)


def v0_exact(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """As `v0`, with the best allocation there is, by dynamic programming.

    References:
      V0, arXiv:2602.03584. Departs: exact in place of greedy.
    """
    return _among_known(m, estimates, budget, lambda p, left: _exact(m, p, left))


def _exact(m: Method, p: Float[ndarray, " K"], budget: int) -> Int[ndarray, " K"]:
    _check_budget(m, len(p), budget)
    extra_max = m.rollouts_max - m.rollouts_min
    extra = min(budget - len(p) * m.rollouts_min, len(p) * extra_max)
    # The whole budget is spent: before the first prompt nothing may be left over.
    best = np.where(np.arange(extra + 1) == 0, 0.0, -np.inf)
    taken = np.zeros((len(p), extra + 1), np.int64)
    for i, rate in enumerate(p):
        value = _utility(rate, m.rollouts_min + np.arange(min(extra_max, extra) + 1))
        totals = np.full((len(value), extra + 1), -np.inf)
        for k, v in enumerate(value):
            totals[k, k:] = best[: extra + 1 - k] + v
        taken[i], best = totals.argmax(axis=0), totals.max(axis=0)
    counts, left = np.zeros(len(p), np.int64), extra
    for i in reversed(range(len(p))):
        counts[i] = taken[i, left]
        left -= int(counts[i])
    return counts + m.rollouts_min


def v0_5(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """One more for each prompt whose baseline still gains more than `rollout_cost` by it.

    With k completions of mean v and prior V: gap = max(0, (v - V)^2 - s / k), error(k) =
    gap (s / k) / (gap + s / k), s = `prior_noise`; go on while error(k) - error(k + 1) >
    rollout_cost and k < rollouts_max. Prompts with fewer than rollouts_min get those first. A
    prior that is not known counts as infinitely far: error(k) = s / k.

    References:
      V0.5, arXiv:2603.10848. Departs: the stop rule is reconstructed; gap is held fixed.
    """
    sampled, mean, prior = estimates.sampled, estimates.mean, estimates.prior
    if sampled is None or mean is None or prior is None:
        raise ValueError(f"method {m.name!r} allocates by estimates.sampled, mean and prior")
    k = np.maximum(sampled, 1)
    gap = np.maximum((mean - prior) ** 2 - m.prior_noise / k, 0.0)

    def error(n: Int[ndarray, " P"]) -> Float[ndarray, " P"]:
        noise = m.prior_noise / n
        shrunk = gap * noise / np.where(gap + noise > 0, gap + noise, 1.0)
        return np.where(np.isnan(prior), noise, shrunk)

    more = (error(k) - error(k + 1) > m.rollout_cost) & (sampled < m.rollouts_max)
    wanted = np.where(sampled < m.rollouts_min, m.rollouts_min - sampled, more.astype(np.int64))
    return _within(wanted, budget)


def xrpo(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """More for prompts whose mean reward is uncertain or that were asked little, in phases.

    Each completion goes to the prompt of the highest priority h(n) - h(n + 1) + allocation_bonus
    sqrt(log(sum n) / n), h(n) = t s / sqrt(n): half the width of the confidence interval of the
    mean at level 1 - confidence_alpha, t the quantile of Student's distribution with n - 1 degrees
    of freedom, s the deviation of the rewards so far, held fixed within a phase. Prompts with fewer
    than rollouts_min get those first; the rest of the budget is planned in `allocation_phases`
    equal parts.

    References:
      XRPO, arXiv:2510.06672. Departs: form and weight of the bonus, the level, and s held fixed
      are assumed; prompts without a right completion are not asked again with examples.
    """
    sampled, deviation = estimates.sampled, estimates.deviation
    if sampled is None or deviation is None:
        raise ValueError(f"method {m.name!r} allocates by estimates.sampled and deviation")
    if (sampled < m.rollouts_min).any():
        return _within(np.maximum(m.rollouts_min - sampled, 0), budget)
    planned = int(sampled.sum()) + budget - len(sampled) * m.rollouts_min
    number = min(budget, -(-planned // m.allocation_phases))
    counts = sampled.copy()
    for _ in range(min(number, int((m.rollouts_max - counts).sum()))):
        width, narrower = (_interval(m, deviation, counts + k) for k in (0, 1))
        priority = width - narrower + m.allocation_bonus * np.sqrt(np.log(counts.sum()) / counts)
        counts[np.where(counts < m.rollouts_max, priority, -np.inf).argmax()] += 1
    return counts - sampled


def _interval(
    m: Method, deviation: Float[ndarray, " P"], n: Int[ndarray, " P"]
) -> Float[ndarray, " P"]:
    """Half the width of the confidence interval of the mean of n rewards."""
    quantile = [student_quantile(1 - m.confidence_alpha / 2, size - 1) for size in n.tolist()]
    return np.array(quantile) * deviation / np.sqrt(n)


@functools.cache
def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution, by bisection of its closed form.

    Args:
      probability: at least 0.5, below 1.
      degrees: degrees of freedom, at least 1.

    Example:
      >>> round(student_quantile(0.975, 3), 6)
      3.182446
    """
    low, high = 0.0, np.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return float(np.sqrt(degrees) * np.tan(low))


def _student_cdf(angle: float, degrees: int) -> float:
    """P(t < sqrt(degrees) tan angle): a finite sum for whole degrees of freedom."""
    cos, odd = np.cos(angle), degrees % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    inside = np.sin(angle) * total
    return 0.5 + ((angle + inside) / np.pi if odd else inside / 2)


def _within(wanted: Int[ndarray, " P"], budget: int) -> Int[ndarray, " P"]:
    """What is wanted, until the budget is spent, the first prompts first."""
    return np.minimum(wanted, np.maximum(budget - (np.cumsum(wanted) - wanted), 0))


def _among_known(
    m: Method,
    estimates: Estimates,
    budget: int,
    allocate: Callable[[Float[ndarray, " K"], int], Int[ndarray, " K"]],
) -> Int[ndarray, " P"]:
    """An equal share for each prompt of unknown rate, and the rest among the others."""
    p = _rates(m, estimates)
    _check_budget(m, len(p), budget)
    known = ~np.isnan(p)
    share = np.clip(budget // len(p), m.rollouts_min, m.rollouts_max)
    counts = np.full(len(p), share, np.int64)
    if known.any():
        counts[known] = allocate(p[known], budget - int(share * (~known).sum()))
    return counts


def _utility(p: Any, n: Any) -> Float[ndarray, " N"]:
    return n * (1 - p) * (1 - (1 - p) ** (n - 1))


def _rates(m: Method, estimates: Estimates) -> Float[ndarray, " P"]:
    if estimates.success is None:
        raise ValueError(f"method {m.name!r} allocates by estimates.success: pass it")
    return np.asarray(estimates.success, np.float64)


def _check_budget(m: Method, number: int, budget: int) -> None:
    if budget < number * m.rollouts_min:
        raise ValueError(
            f"a budget of {budget} completions does not give {number} prompts rollouts_min = "
            f"{m.rollouts_min} each: raise it or lower rollouts_min"
        )


def _greedy(
    m: Method,
    number: int,
    budget: int,
    gain: Callable[[Int[ndarray, " P"]], Float[ndarray, " P"]],
) -> Int[ndarray, " P"]:
    """Gives one completion after another to the prompt that gains most, evenly among equals."""
    _check_budget(m, number, budget)
    counts = np.full(number, m.rollouts_min, np.int64)
    for _ in range(min(budget, number * m.rollouts_max) - number * m.rollouts_min):
        gains = np.where(counts < m.rollouts_max, gain(counts), -np.inf)
        best = np.flatnonzero(gains == gains.max())
        counts[best[counts[best].argmin()]] += 1
    return counts


_BOUNDS = ("rollouts_min", "rollouts_max")
_RATES = (*_BOUNDS, "min_value", "max_value")
_UNEQUAL = "Groups differ in size: rows that do not exist must not be valid."
ALLOCATES: Mapping[str, Choice[Allocate]] = {
    "uniform": Choice(function=uniform, formula="every prompt gets the same"),
    "knapsack": Choice(
        function=knapsack,
        formula="max sum_q p (1 - p)^2 (1 - p^N - (1 - p)^N), p = last success rate,"
        " rollouts_min <= N <= rollouts_max",
        constants=_RATES,
        needs=("allocation",),
        watch=("reward/zero_variance_fraction", "sampling/group_max"),
        pitfalls=(_UNEQUAL,),
    ),
    "v0": Choice(
        function=v0,
        formula="max sum_q N (1 - p) (1 - (1 - p)^(N - 1)), greedily, p = predicted success rate,"
        " rollouts_min <= N <= rollouts_max",
        constants=_RATES,
        needs=("allocation",),
        watch=("reward/zero_variance_fraction", "sampling/group_max"),
        pitfalls=("Greedy is not optimal here and can starve hard prompts: v0_exact is.", _UNEQUAL),
    ),
    "v0_exact": Choice(
        function=v0_exact,
        formula="max sum_q N (1 - p) (1 - (1 - p)^(N - 1)), exactly, p = predicted success rate",
        constants=_RATES,
        needs=("allocation",),
        watch=("reward/zero_variance_fraction", "sampling/group_max"),
        pitfalls=(_UNEQUAL,),
    ),
    "v0_5": Choice(
        function=v0_5,
        formula="one more while error(k) - error(k + 1) > rollout_cost and k < rollouts_max,"
        " error(k) = D s / k / (D + s / k), D = max(0, (mean - V)^2 - s / k), s = prior_noise",
        constants=(*_BOUNDS, "rollout_cost", "prior_noise"),
        needs=("allocation", "prior"),
        watch=("reward/zero_variance_fraction", "sampling/group_max"),
        pitfalls=(_UNEQUAL,),
    ),
    "xrpo": Choice(
        function=xrpo,
        formula="one after another to the highest h(n) - h(n + 1) + allocation_bonus"
        " sqrt(log(sum n) / n), h(n) = t_(1 - confidence_alpha / 2, n - 1) std R / sqrt(n),"
        " in allocation_phases phases",
        constants=(*_BOUNDS, "allocation_phases", "allocation_bonus", "confidence_alpha"),
        needs=("allocation",),
        watch=("reward/zero_variance_fraction", "sampling/group_max"),
        pitfalls=(_UNEQUAL,),
    ),
}
