"""The store of completions that come back: what `TrainState` keeps of it, exactly.

It is a ring: the newest completion takes the place of the oldest. Letters: M prompts of the data,
N places of the store, T tokens, P prompts of a step, G completions per prompt, R prompts asked
again, K candidates of each.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo import algo
from jgrpo.config import Config
from jgrpo.keys import named_key, root_key
from jgrpo.types import AnyArray, Rollouts

_MAX_BYTES = 2**31


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """Completions with the log-probs they were drawn at, and how their prompts fared.

    Attributes:
      owner: number of the prompt of each completion; -1: the place is empty.
      tokens: token ids.
      logp: log-probs (nats) under the policy that drew them.
      lengths: number of tokens.
      written: completions stored so far; the next one goes to place written % N.
      successes: right completions of each prompt's group when it was last asked.
      retired: prompts that are asked no more.
      started: whether completions come back yet.
    """

    owner: Int[AnyArray, " N"]
    tokens: Int[AnyArray, "N T"]
    logp: Float[AnyArray, "N T"]
    lengths: Int[AnyArray, " N"]
    written: Int[AnyArray, ""]
    successes: Int[AnyArray, " M"]
    retired: Bool[AnyArray, " M"]
    started: Bool[AnyArray, ""]


class ToAsk(NamedTuple):
    """The prompts of a step.

    Attributes:
      ids: their numbers in the data, those that a completion comes back for first.
      replayed: how many these are.
      after: prompts taken from the run's order, these included.
    """

    ids: Int[ndarray, " P"]
    replayed: int
    after: int


def fresh(method: algo.Method, num_prompts: int, width: int) -> Store:
    """An empty store.

    Args:
      method: for its capacity.
      num_prompts: prompts of the data.
      width: longest completion in tokens.

    Raises:
      ValueError: if the store would take more than 2 GiB.
    """
    capacity = method.replay_capacity
    if 8 * capacity * width > _MAX_BYTES:
        raise ValueError(
            f"method.replay_capacity: {capacity:,} completions of {width} tokens take more than "
            f"2 GiB; at most {_MAX_BYTES // (8 * width):,} fit"
        )
    return Store(
        owner=np.full(capacity, -1, np.int32),
        tokens=np.zeros((capacity, width), np.int32),
        logp=np.zeros((capacity, width), np.float32),
        lengths=np.zeros(capacity, np.int32),
        written=np.zeros((), np.int32),
        successes=np.zeros(num_prompts, np.int32),
        retired=np.zeros(num_prompts, bool),
        started=np.zeros((), bool),
    )


def to_ask(
    cfg: Config, store: Store, order: Callable[[int, int], Int[ndarray, " C"]], cursor: int
) -> ToAsk:
    """The prompts of a step: some of those in the store, then the next ones that are not retired.

    Where too few are left, retired ones are asked after all.

    Args:
      cfg: the run's config; its seed and the cursor name the draw.
      store: the store.
      order: gives so many prompts of the run's order from a place on.
      cursor: prompts taken so far from the run's order.

    Raises:
      ValueError: if the data have fewer prompts than a step asks.
    """
    method, count = cfg.method, cfg.data.num_prompts_per_step
    retired = np.asarray(store.retired)
    num_prompts = len(retired)
    if num_prompts < count:
        raise ValueError(
            f"method {method.name!r}: a step asks {count} different prompts, the data have "
            f"{num_prompts}"
        )
    again = np.zeros(0, np.int64)
    if np.asarray(store.started):
        owners = np.unique(np.asarray(store.owner))
        owners = owners[owners >= 0]
        key = named_key(root_key(cfg.run.seed), "replay", cursor)
        successes = np.asarray(store.successes)[owners]
        wanted = int(method.replay_share * count)
        again = owners[algo.replay(method, successes, cfg.group_drawn, key, wanted)]
    taken, passed, after = dict.fromkeys(again.tolist()), dict[int, None](), cursor
    while len(taken) < count and after < cursor + 2 * num_prompts:  # a whole epoch lies in these
        for prompt in order(after, count - len(taken)).tolist():
            (passed if retired[prompt] else taken).setdefault(prompt)
            after += 1
    ids = list(dict.fromkeys([*taken, *passed]))[:count]
    return ToAsk(np.array(ids, np.int64), len(again), after)


def candidates(store: Store, ids: Int[ndarray, " R"], number: int) -> Int[ndarray, "R K"]:
    """Places of the newest completions of some prompts, the newest first; -1: there is none.

    Args:
      store: the store.
      ids: the prompts.
      number: K.
    """
    owner = np.asarray(store.owner)
    newest_first = (int(store.written) - 1 - np.arange(len(owner))) % len(owner)
    found = np.full((len(ids), number), -1, np.int64)
    for row, prompt in zip(found, ids.tolist(), strict=True):
        own = newest_first[owner[newest_first] == prompt][:number]
        row[: len(own)] = own
    return found


def observed(
    method: algo.Method,
    store: Store,
    ids: Int[ndarray, " P"],
    rollouts: Rollouts,
    old_logp: Float[AnyArray, "P G T"],
    correct: Bool[ndarray, "P G"],
    valid: Bool[ndarray, "P G"],
) -> Store:
    """The store after a step: right completions are added, solved prompts leave.

    Args:
      method: the method.
      store: the store before.
      ids: the prompts of the step, all different.
      rollouts: their completions.
      old_logp: log-probs of their tokens under the policy that drew them.
      correct: right completions.
      valid: completions that count.
    """
    owner, tokens, logp, lengths, successes, retired = (
        np.array(x)
        for x in (
            *(store.owner, store.tokens, store.logp, store.lengths),
            *(store.successes, store.retired),
        )
    )
    right = correct & valid
    successes[ids], solved = right.sum(axis=1), algo.all_right(correct, valid)
    retired[ids] |= solved
    admitted = algo.admitted(correct, valid, np.asarray(rollouts.finished)) & ~came_back(rollouts)
    mask, written = np.asarray(rollouts.mask), int(store.written)
    for p, g in np.argwhere(admitted):
        place, n = written % len(owner), int(mask[p, g].sum())
        owner[place], lengths[place] = ids[p], n
        tokens[place], logp[place] = 0, 0
        tokens[place, :n] = np.asarray(rollouts.tokens)[p, g, :n]
        logp[place, :n] = np.asarray(old_logp)[p, g, :n]
        written += 1
    owner[np.isin(owner, ids[solved])] = -1
    share = right.sum() / max(int(valid.sum()), 1)
    return Store(
        owner=owner,
        tokens=tokens,
        logp=logp,
        lengths=lengths,
        written=np.asarray(written, np.int32),
        successes=successes,
        retired=retired,
        started=np.asarray(bool(store.started) or bool(share > method.replay_start)),
    )


def came_back(rollouts: Rollouts) -> Bool[ndarray, "P G"]:
    """True for completions that an earlier step has drawn."""
    if rollouts.standing is None:
        return np.zeros(rollouts.mask.shape[:2], bool)
    return np.asarray(rollouts.standing.ratio) == algo.Ratio.RECORDED


def store_metrics(store: Store, rollouts: Rollouts) -> dict[str, float]:
    """What came back in a step, and what is stored after it.

    Args:
      store: after the step.
      rollouts: of the step.
    """
    owner = np.asarray(store.owner)
    return {
        "replay/fraction": float(came_back(rollouts).any(axis=1).mean()),
        "replay/stored_prompts": len(np.unique(owner[owner >= 0])),
        "replay/retired_prompts": int(np.asarray(store.retired).sum()),
    }
