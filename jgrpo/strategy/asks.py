"""What the sampler is asked for in one round, and its answers put into their groups.

Letters: P prompts, G places of a group, A asks, S completions of the largest ask, T tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from jgrpo.buckets import bucket, left_padded, power_of_two
from jgrpo.types import Prompts, Rollouts

_STEP = 64  # widths of what is asked: these differ from round to round, and each is a program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asks:
    """Each ask wants completions of one prompt that begin alike, in places that follow each other.

    Attributes:
      prompt: number of the prompt of each ask.
      first: place of its first completion in the group; place and prompt name the noise.
      counts: completions it wants.
      beginnings: tokens that its completions begin with, which are not drawn now.
      logps: log-probs of the first tokens of each beginning, if these have been drawn before; the
        others are nobody's. Empty: there are none.
      contexts: what is asked in place of each prompt; empty, or None in it: the prompt.
      most: most tokens of the completions of each; empty: as many as the run allows.
      given: True where the beginning is the whole completion; empty: nowhere.
    """

    prompt: Int[ndarray, " A"]
    first: Int[ndarray, " A"]
    counts: Int[ndarray, " A"]
    beginnings: Sequence[Sequence[int]]
    logps: Sequence[Sequence[float]] = ()
    contexts: Sequence[Sequence[int] | None] = ()
    most: Sequence[int] = ()
    given: Sequence[bool] = ()

    @property
    def to_draw(self) -> Int[ndarray, " A"]:
        """Completions of each ask that somebody must draw."""
        return np.where(np.asarray(self.given, bool), 0, self.counts) if self.given else self.counts

    @property
    def injected(self) -> Int[ndarray, " A"]:
        """Tokens of each beginning."""
        return np.array([len(tokens) for tokens in self.beginnings], np.int64)

    def limits(self, limit: int) -> Int[ndarray, " A"]:
        """Most tokens that somebody draws of each completion, where the run allows so many."""
        most = np.minimum(limit, self.most) if self.most else limit
        return np.maximum(1, most - self.injected)

    def sizes(self, slots: int) -> tuple[int, int]:
        """Places of a group and slots of the sampler for it, in powers of two: few are compiled.

        Args:
          slots: `rollout.slots`, the most there may be; 0: no bound.
        """
        wanted = power_of_two(int(self.to_draw.sum()))
        size = power_of_two(int(self.to_draw.max()))
        return size, min(wanted, slots) if slots else wanted

    def whole(self, prompts: int, size: int) -> bool:
        """Whether these are plain groups of this size, one of each prompt, and nothing else."""
        special = self.contexts or self.most or self.given or any(self.beginnings)
        each = (self.prompt, np.arange(prompts)), (self.first, 0), (self.counts, size)
        alike = all(np.array_equal(x, np.broadcast_to(y, prompts)) for x, y in each)
        return alike and not special

    def place(self, ask: int, member: int) -> tuple[int, int]:
        """Prompt, and place in its group, of a completion of an ask."""
        return int(self.prompt[ask]), int(self.first[ask]) + member

    def prompts(self, prompts: Prompts) -> Prompts:
        """What the sampler reads for each ask: the prompt, and the beginning of its completions."""
        contexts = self.contexts or [None] * len(self.prompt)
        rows = []
        for p, begin, context in zip(self.prompt, self.beginnings, contexts, strict=True):
            if context is None:
                context = np.asarray(prompts.tokens)[p][np.asarray(prompts.mask)[p]].tolist()
            rows.append([*context, *begin])
        width = prompts.tokens.shape[1]
        if self.contexts or any(len(begin) for begin in self.beginnings):
            width = bucket(max(map(len, rows)), _STEP)
        tokens, mask = left_padded(rows, width)
        return Prompts(uid=np.asarray(prompts.uid)[self.prompt], tokens=tokens, mask=mask)

    def undrawn(self, prompts: Prompts) -> Rollouts:
        """What the sampler would give if it drew nothing."""
        shape = (len(self.prompt), 1, 1)
        return Rollouts(
            prompts=self.prompts(prompts),
            tokens=np.zeros(shape, np.int32),
            mask=np.zeros(shape, bool),
            behavior_logp=np.zeros(shape, np.float32),
            finished=np.zeros(shape[:2], bool),
        )

    def answered(self, drawn: Rollouts, prompts: Prompts, places: int) -> Rollouts:
        """The completions in the groups of their prompts, each behind its beginning.

        Args:
          drawn: what the sampler gave for `self.prompts(prompts)`; an ask's first `to_draw`
            completions are there.
          prompts: of the round.
          places: places of a group; those that nothing comes to stay empty.
        """
        tokens, mask, logp, finished = (
            np.asarray(x) for x in (drawn.tokens, drawn.mask, drawn.behavior_logp, drawn.finished)
        )
        injected, logps = self.injected, self.logps or [()] * len(self.prompt)
        given = self.given or [False] * len(self.prompt)
        longest = int((mask.sum(-1) + injected[:, None]).max(initial=1))
        width = drawn.tokens.shape[-1] if not injected.any() else bucket(longest)
        shape = (len(prompts.uid), places)
        found = Rollouts(
            prompts=prompts,
            tokens=np.zeros((*shape, width), np.int32),
            mask=np.zeros((*shape, width), bool),
            behavior_logp=np.zeros((*shape, width), np.float32),
            finished=np.zeros(shape, bool),
            injected=np.zeros((*shape, width), bool) if injected.any() else None,
        )
        for a, (n, begin) in enumerate(zip(self.counts.tolist(), self.beginnings, strict=True)):
            p, first = self.place(a, 0)
            at, k, before = (p, slice(first, first + n)), len(begin), len(logps[a])
            if not given[a]:
                rest = min(tokens.shape[-1], width - k)
                for whole, part in (
                    (found.tokens, tokens),
                    (found.mask, mask),
                    (found.behavior_logp, logp),
                ):
                    whole[(*at, slice(k, k + rest))] = part[a, :n, :rest]
            found.finished[at] = True if given[a] else finished[a, :n]
            if k:
                assert found.injected is not None
                found.tokens[(*at, slice(0, k))] = begin
                found.mask[(*at, slice(0, k))] = True
                found.behavior_logp[(*at, slice(0, before))] = logps[a]
                found.injected[(*at, slice(before, k))] = True
        return found


def shares(counts: Int[ndarray, " P"], before: Int[ndarray, " P"]) -> Asks:
    """Asks for so many further plain completions of each prompt.

    Args:
      counts: completions wanted of each prompt.
      before: completions that each has already, in the first places of its group.
    """
    return Asks(
        prompt=np.arange(len(counts)),
        first=np.asarray(before),
        counts=np.asarray(counts),
        beginnings=[()] * len(counts),
    )
