"""The papers' equations in slow, obvious numpy loops (float64), and the fixtures FB and FT.

Written from the equations, not from the package: only the `Method` record is shared. Gradients are
worked out by hand, so that stop-gradients are explicit.
"""

import numpy as np

from jgrpo.algo import Method

FB = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], np.float32)
FT_OLD = np.array([[-1, -2, -0.5], [-0.7, -1.5, -3]], np.float32)
FT_DELTA = np.array([[0.3, -0.1, 0.05], [0.25, -0.35, 0.7]], np.float32)
FT_LOGP = FT_OLD + FT_DELTA
FT_MASK = np.array([[True, True, True], [True, True, False]])
FT_ADVANTAGES = np.array([1, -1], np.float32)
FT_REF = np.array([[-1.2, -1.9, -0.5], [-0.6, -1.7, -2]], np.float32)


def advantages(m: Method, rewards, *, valid=None, lengths=None, limit=None, sequence_kl=None):
    """Shape, base and scale, one group and one completion at a time."""
    rewards = np.asarray(rewards, np.float64)
    out = np.zeros(rewards.shape)
    for p in range(rewards.shape[0]):
        rows = [i for i in range(rewards.shape[1]) if valid is None or valid[p, i]]
        shaped = {}
        for i in rows:
            shaped[i] = rewards[p, i]
            if m.shape == "overlong":
                free, n = limit - m.overlong_buffer_tokens, lengths[p, i]
                if free < n <= limit:
                    shaped[i] += m.overlong_penalty * (free - n) / m.overlong_buffer_tokens
                elif n > limit:
                    shaped[i] -= m.overlong_penalty
            if m.kl_in == "reward" and m.penalty == "k1":
                shaped[i] -= m.kl_coef * sequence_kl[p, i]
        for i in rows:
            others = [shaped[j] for j in rows if j != i]
            base = {
                "none": 0.0,
                "group_mean": sum(shaped.values()) / len(rows),
                "leave_one_out": sum(others) / len(others) if others else shaped[i],
            }[m.base]
            out[p, i] = shaped[i] - base
            if m.scale == "group_std":
                mean = sum(shaped.values()) / len(rows)
                squares = sum((r - mean) ** 2 for r in shaped.values())
                constant = len(set(shaped.values())) == 1
                std = 0.0 if constant else np.sqrt(squares / (len(rows) - m.scale_ddof))
                out[p, i] = 0.0 if constant else out[p, i] / (std + m.scale_eps)
    return out


def token_weights(m: Method, mask):
    """One token at a time."""
    out = np.zeros(mask.shape)
    lengths = [sum(bool(x) for x in row) for row in mask]
    filled = sum(n > 0 for n in lengths)
    for i, n in enumerate(lengths):
        for t in range(mask.shape[1]):
            if mask[i, t]:
                out[i, t] = {
                    "token_mean": 1 / sum(lengths),
                    "sequence_mean": 1 / (n * filled),
                    "sequence_sum": 1 / filled,
                    "constant_length": 1 / (len(lengths) * max(m.constant_length_tokens, 1)),
                }[m.weights]
    return out


def surrogate(m: Method, level: float, advantage: float, logp: float):
    """Value of phi, its derivative by the log-ratio, and its direct derivative by logp."""
    ratio = np.exp(level)
    bounded = min(max(ratio, 1 - m.clip_low), 1 + m.clip_high)
    if m.trust == "linear":
        return advantage * logp, 0.0, advantage
    if m.trust == "cispo":
        return bounded * advantage * logp, 0.0, bounded * advantage
    value, slope = ratio * advantage, ratio * advantage
    if bounded * advantage < value:
        value, slope = bounded * advantage, 0.0
    if m.dual_clip > 0 and advantage < 0 and value < m.dual_clip * advantage:
        value, slope = m.dual_clip * advantage, 0.0
    return value, slope, 0.0


def policy_loss(m: Method, logp, old_logp, mask, per_token, ref_logp=None):
    """Loss and its gradient by logp; `per_token` are advantages [B, T]."""
    weights = token_weights(m, mask)
    loss, gradient = 0.0, np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        tokens = [t for t in range(mask.shape[1]) if mask[i, t]]
        lp = {t: float(logp[i, t]) for t in tokens}
        delta = {t: lp[t] - float(old_logp[i, t]) for t in tokens}
        clamped = {t: min(max(delta[t], -20.0), 20.0) for t in tokens}
        inside = {t: float(abs(delta[t]) < 20) for t in tokens}
        mean = sum(clamped.values()) / max(len(tokens), 1)
        for t in tokens:
            level = clamped[t] if m.level == "token" else mean
            value, by_level, by_logp = surrogate(m, level, float(per_token[i, t]), lp[t])
            loss -= weights[i, t] * value
            gradient[i, t] -= weights[i, t] * by_logp
            if m.level == "token":
                gradient[i, t] -= weights[i, t] * by_level * inside[t]
            elif m.level == "sequence_token":
                gradient[i, t] -= weights[i, t] * by_level
            else:
                for s in tokens:
                    gradient[i, s] -= weights[i, t] * by_level * inside[s] / len(tokens)
            if m.kl_in == "loss" and m.penalty != "none" and m.kl_coef > 0:
                u = min(max(lp[t] - float(ref_logp[i, t]), -20.0), 20.0)
                kappa, slope = {
                    "k1": (u, 1.0),
                    "k2": (u * u / 2, u),
                    "k3": (np.exp(-u) + u - 1, 1 - np.exp(-u)),
                }[m.penalty]
                loss += weights[i, t] * m.kl_coef * kappa
                gradient[i, t] += weights[i, t] * m.kl_coef * slope * float(abs(u) < 20)
    return loss, gradient
