"""Advantages of single methods in slow numpy loops, one group at a time, from objectives.md.

Nothing of the package is used. Letters: G completions of a group, K reward columns, T tokens.
"""

import numpy as np


def std(x, ddof=1):
    x = np.asarray(x, np.float64)
    if len(x) <= ddof or np.all(x == x[0]):
        return 0.0
    return np.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - ddof))


def zscore(x, eps=1e-6, ddof=1):
    """C1; a constant group gets 0."""
    x = np.asarray(x, np.float64)
    return np.zeros(len(x)) if std(x, ddof) == 0 else (x - x.mean()) / (std(x, ddof) + eps)


def lower_median(x):
    return sorted(x)[(len(x) - 1) // 2]


def mc_grpo(groups, eps=1e-3):
    """C8: advantages, and the row that is dropped in each group."""
    out, dropped = [], []
    for r in groups:
        b = lower_median(r)
        mad = lower_median([abs(x - b) for x in r]) + eps
        out.append([(x - b) / mad for x in r])
        dropped.append(list(r).index(b))
    return np.array(out), dropped


def ngrpo(groups, r_max=1.0, count=1, eps=1e-6):
    """C9."""
    out = []
    for r in groups:
        everyone = np.array([*r, *[r_max] * count], np.float64)
        s = std(everyone)
        out.append([0.0 if s == 0 else (x - everyone.mean()) / (s + eps) for x in r])
    return np.array(out)


def bnpo(groups):
    """C7, with the guards of the specification."""
    from math import exp, lgamma, log

    p = [float(np.mean(r)) for r in groups]
    a = b = 0.0
    if len(p) > 1 and len(set(p)) > 1:
        mean, var = np.mean(p), np.var(p, ddof=1)
        kappa = mean * (1 - mean) / var - 1
        a, b = kappa * mean, kappa * (1 - mean)
    alpha, beta = max(1, 1 + a / 3), max(1, 1 + b / 3)
    out = []
    for r, rate in zip(groups, p, strict=True):
        if rate in (0.0, 1.0):
            out.append([0.0] * len(r))
            continue
        norm = lgamma(alpha + beta) - lgamma(alpha) - lgamma(beta)
        density = exp(norm + (alpha - 1) * log(rate) + (beta - 1) * log(1 - rate))
        out.append([(x - rate) * min(1 / density, 1e6) for x in r])
    return np.array(out)


def batch_zscore(x, eps):
    flat = np.asarray(x, np.float64).ravel()
    s = std(flat)
    return np.zeros_like(x) if s == 0 else (x - flat.mean()) / (s + eps)


def whiten(x, mask, eps=1e-8):
    inside = x[mask]
    out = np.zeros(x.shape)
    if len(inside) > 1 and not np.all(inside == inside[0]):
        out[mask] = (inside - inside.mean()) / np.sqrt(inside.var(ddof=1) + eps)
    return out


def columns(groups, eps):
    """Every column's z-score: [P, G, K]."""
    groups = np.asarray(groups, np.float64)
    out = np.zeros(groups.shape)
    for p in range(groups.shape[0]):
        for k in range(groups.shape[2]):
            out[p, :, k] = zscore(groups[p, :, k], eps)
    return out


def stratified(groups, strata, alpha=0.5, eps=1e-6):
    """C12, ddof 0."""
    out = np.zeros(np.shape(groups))
    for p, (r, s) in enumerate(zip(groups, strata, strict=True)):
        whole = zscore(r, eps, ddof=0)
        for k in set(s):
            rows = [i for i in range(len(r)) if s[i] == k]
            own = zscore([r[i] for i in rows], eps, ddof=0)
            for i, x in zip(rows, own, strict=True):
                out[p, i] = alpha * x + (1 - alpha) * whole[i]
    return out


def ranks(x):
    """Stable ascending ranks."""
    return np.argsort(np.argsort(x, kind="stable"), kind="stable")


def squash(r, tau=0.8, high=0.01, low=1.0):
    """B3."""
    if r >= tau:
        return tau + high * np.log(r - tau + 1)
    return tau - (np.exp(low * (tau - r)) - 1) / (np.exp(low) - 1)


def novelty(groups, mean_logp, coef=2.5, clip=0.5):
    """C16 for rewards in {0, 1}."""
    out = []
    for r, s in zip(groups, mean_logp, strict=True):
        a = zscore(r)
        eta = np.exp(np.asarray(s, np.float64) - np.mean(s))
        out.append(
            [
                x + min(max(coef * (1 - e), 0), clip * x) if x > 0 else x
                for x, e in zip(a, eta, strict=True)
            ]
        )
    return np.array(out)


def tempo(groups, tokens, mask, eps=1e-6):
    """C15: [P, G, T]."""
    out = np.zeros(tokens.shape)
    for p, r in enumerate(groups):
        s, mean = std(r), np.mean(r)
        if s == 0:
            continue
        texts = [
            [int(x) for x, m in zip(row, steps, strict=True) if m]
            for row, steps in zip(tokens[p], mask[p], strict=True)
        ]

        def value(prefix, r=r, texts=texts):
            here = [x for x, text in zip(r, texts, strict=True) if text[: len(prefix)] == prefix]
            return np.mean(here)

        for i, text in enumerate(texts):
            for t in range(len(text)):
                change = value(text[: t + 1]) - value(text[:t])
                out[p, i, t] = (r[i] - mean + change) / (s + eps)
    return out


def v0_5(groups, prior, noise=1.0):
    """C11."""
    out = []
    for r, v in zip(groups, prior, strict=True):
        mean, each = np.mean(r), noise / len(r)
        gap = max(0.0, (mean - v) ** 2 - each)
        w = gap / (gap + each)
        out.append([x - (w * mean + (1 - w) * v) for x in r])
    return np.array(out)


def gae(rewards, values, gamma, lam):
    """C6 for one completion without gaps."""
    out, later, after = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * after - values[t]
        later = delta + gamma * lam * later
        out[t], after = later, values[t]
    return out


def disco(z, score, tau):
    """G1: J, and its derivative by the scores, for [P, G]."""
    total, slope = 0.0, np.zeros(np.shape(score))
    for p, (labels, s) in enumerate(zip(z, score, strict=True)):
        right = [i for i, x in enumerate(labels) if x == 1]
        wrong = [i for i, x in enumerate(labels) if x == 0]
        if not right or not wrong:
            continue
        raised = {i: np.exp(s[i] / tau) for i in wrong}
        total += np.mean([s[i] for i in right]) - tau * np.log(np.mean(list(raised.values())))
        for i in right:
            slope[p, i] = 1 / len(right) / len(z)
        for i in wrong:
            slope[p, i] = -raised[i] / sum(raised.values()) / len(z)
    return total / len(z), slope
