"""ALLOCATE: how many completions each prompt gets, from what is known of its success rate.

Letters: P prompts. Numpy in float64 on the host: counts decide shapes, so nothing here is traced.
Every choice has the signature `Allocate`. After an unequal allocation groups differ in size, and
`Side.valid` says which rows of [P, G] exist.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimates:
    """What is known about the prompts of a batch before the next round of sampling.

    Attributes:
      success: predicted success rate of each prompt, in [0, 1]; nan where unknown.
      sampled: completions of each prompt so far.
      mean: mean reward of those.
      prior: predicted mean reward of each prompt, in reward units.
    """

    success: Float[ndarray, " P"] | None = None
    sampled: Int[ndarray, " P"] | None = None
    mean: Float[ndarray, " P"] | None = None
    prior: Float[ndarray, " P"] | None = None


Allocate: TypeAlias = Callable[[Method, Estimates, int], Int[ndarray, " P"]]


def allocation(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """How many completions each prompt gets in the next round.

    Args:
      m: the method.
      estimates: what its `allocate` slot reads.
      budget: completions to be given out in all.

    Raises:
      ValueError: if an estimate is missing, or the budget does not reach the least of each prompt.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> allocation(METHODS["v0"], Estimates(success=np.array([0.1, 0.5, 0.9])), 12).tolist()
      [2, 8, 2]
    """
    return chosen(ALLOCATES, m.allocate).function(m, estimates, budget)


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
    largest gain again and again is exact. Unknown prompts get an equal share; what solved and
    mid-difficulty prompts cannot take goes to those never solved, then to those always solved.

    References:
      Knapsack RL, arXiv:2509.25849. Departs: greedy in place of dynamic programming (the same
      result); the share of unknown prompts is assumed.
    """
    p = _rates(m, estimates)
    unknown = np.isnan(p)
    share = np.clip(budget // len(p), m.rollouts_min, m.rollouts_max)
    left = budget - int(share * unknown.sum())
    counts = np.full(len(p), share, np.int64)
    known = p[~unknown]

    def gain(n: Int[ndarray, " K"]) -> Float[ndarray, " K"]:
        value = known * (1 - known) ** 2
        value = value * (known**n * (1 - known) + (1 - known) ** n * known)
        return np.where(known >= 1, -1.0, value)

    if len(known):
        counts[~unknown] = _greedy(m, len(known), left, gain)
    return counts


def v0(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """Spends the budget on expected wrong completions that come with a right one, greedily.

    Utility B (1 - p) (1 - (1 - p)^(B - 1)). It is not concave at small p, so this can starve hard
    prompts: `v0_exact` does not.

    References:
      V0, arXiv:2602.03584. Departs: none.
    """
    p = _rates(m, estimates)
    return _greedy(m, len(p), budget, lambda n: _utility(p, n + 1) - _utility(p, n))


def v0_exact(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """As `v0`, with the best allocation there is, by dynamic programming.

    References:
      V0, arXiv:2602.03584. Departs: exact in place of greedy.
    """
    p = _rates(m, estimates)
    _check_budget(m, len(p), budget)
    extra_max = m.rollouts_max - m.rollouts_min
    extra = min(budget - len(p) * m.rollouts_min, len(p) * extra_max)
    best = np.zeros(extra + 1)
    taken = np.zeros((len(p), extra + 1), np.int64)
    for i, rate in enumerate(p):
        value = _utility(rate, m.rollouts_min + np.arange(min(extra_max, extra) + 1))
        totals = np.full((len(value), extra + 1), -np.inf)
        for k, v in enumerate(value):
            totals[k, k:] = best[: extra + 1 - k] + v
        taken[i], best = totals.argmax(axis=0), totals.max(axis=0)
    counts, left = np.zeros(len(p), np.int64), int(best.argmax())
    for i in reversed(range(len(p))):
        counts[i] = taken[i, left]
        left -= int(counts[i])
    return counts + m.rollouts_min


def v0_5(m: Method, estimates: Estimates, budget: int) -> Int[ndarray, " P"]:
    """One more for each prompt whose baseline still gains more than `rollout_cost` by it.

    With k completions of mean v and prior V: gap = max(0, (v - V)^2 - s / k), error(k) =
    gap (s / k) / (gap + s / k), s = `prior_noise`; go on while error(k) - error(k + 1) >
    rollout_cost and k < rollouts_max. Prompts with fewer than rollouts_min get those first.

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
        return gap * noise / np.where(gap + noise > 0, gap + noise, 1.0)

    more = (error(k) - error(k + 1) > m.rollout_cost) & (sampled < m.rollouts_max)
    wanted = np.where(sampled < m.rollouts_min, m.rollouts_min - sampled, more.astype(np.int64))
    return np.minimum(wanted, np.maximum(budget - (np.cumsum(wanted) - wanted), 0))


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
ALLOCATES: Mapping[str, Choice[Allocate]] = {
    "uniform": Choice(function=uniform, formula="every prompt gets the same"),
    "knapsack": Choice(
        function=knapsack,
        formula="max sum_q p (1 - p)^2 (1 - p^N - (1 - p)^N), p = last success rate,"
        " rollouts_min <= N <= rollouts_max",
        constants=_BOUNDS,
        needs=("allocation",),
        watch=("reward/zero_variance_fraction",),
        pitfalls=("Groups differ in size: rows that do not exist must not be valid.",),
    ),
    "v0": Choice(
        function=v0,
        formula="max sum_q N (1 - p) (1 - (1 - p)^(N - 1)), greedily, p = predicted success rate,"
        " rollouts_min <= N <= rollouts_max",
        constants=_BOUNDS,
        needs=("allocation",),
        watch=("reward/zero_variance_fraction",),
        pitfalls=("Greedy is not optimal here and can starve hard prompts: v0_exact is.",),
    ),
    "v0_exact": Choice(
        function=v0_exact,
        formula="max sum_q N (1 - p) (1 - (1 - p)^(N - 1)), exactly, p = predicted success rate",
        constants=_BOUNDS,
        needs=("allocation",),
        watch=("reward/zero_variance_fraction",),
    ),
    "v0_5": Choice(
        function=v0_5,
        formula="one more while error(k) - error(k + 1) > rollout_cost and k < rollouts_max,"
        " error(k) = D s / k / (D + s / k), D = max(0, (mean - V)^2 - s / k), s = prior_noise",
        constants=(*_BOUNDS, "rollout_cost", "prior_noise"),
        needs=("allocation", "prior"),
        watch=("reward/zero_variance_fraction",),
    ),
}
