"""The host's book of one rollout: which completion stands where, what has been drawn of it.

Between the compiled calls of the engine it hands out lanes, and it ends completions at stop strings
in the decoded text, which a compiled call cannot see.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.random import key_data, key_impl, wrap_key_data
from jax.sharding import Mesh, Sharding
from jaxtyping import Bool, Float32, Int, Key, PyTree, UInt
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from jgrpo.buckets import bucket, power_of_two
from jgrpo.keys import sequence_keys
from jgrpo.parallel import hosts
from jgrpo.parallel.rules import data_sharding, data_size
from jgrpo.rollout import decode
from jgrpo.rollout.meter import Meter
from jgrpo.types import Prompts, Rollouts

# The share of idle slots that is worth a program of its own: three quarters.
_NARROWING = 4


@dataclasses.dataclass(frozen=True)
class Ends:
    """What ends a completion.

    Attributes:
      eos_ids: any of these tokens.
      strings: any of these in the text; the token that completes one is the last.
      tokenizer: gives the text; None: nothing is ever drawn.
    """

    eos_ids: tuple[int, ...]
    strings: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase | None

    def at_string(self, tokens: Int[ndarray, " T"]) -> int:
        """Fewest tokens whose text contains one of the strings, or 0."""
        tokenizer = self.tokenizer
        assert tokenizer is not None
        text = lambda n: tokenizer.decode(tokens[:n])  # noqa: E731
        contains = lambda n: any(string in text(n) for string in self.strings)  # noqa: E731
        if not contains(len(tokens)):
            return 0
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if contains(middle) else (middle + 1, high)
        return low


class Work:
    """Letters: P prompts, G completions of each, R devices, M lanes of a device, B lanes of a call.

    Attributes:
      max_tokens: longest completion.
      slots: slots of a lane.
      experts: those that each token took, and `read` those of the prompts; None if nobody says.
    """

    experts: UInt[ndarray, "P G T L k"] | None = None
    read: UInt[ndarray, "P Lp L k"] | None = None

    def __init__(
        self,
        prompts: Prompts,
        key: Key[Array, ""],
        *,
        group_size: int,
        max_tokens: int,
        slots: int,
        ends: Ends,
        mesh: Mesh,
        few: bool = False,
        place: Callable[[PyTree, Sharding], PyTree] = hosts.place,
        wanted: Int[ndarray, " P"] | None = None,
        first: Int[ndarray, " P"] | None = None,
        limits: Int[ndarray, " P"] | None = None,
    ) -> None:
        """Nothing is drawn yet.

        Args:
          prompts: what is asked.
          key: the key of this rollout.
          group_size: the most that any prompt gets.
          max_tokens: longest completion, EOS included.
          slots: completions in the making at once, over all devices; 0: all.
          ends: what ends a completion.
          mesh: devices; lanes are split over its data axes.
          few: keep to few shapes (`Engine.few`).
          place: puts arrays there, or says how they would lie.
          wanted: completions of each prompt, at most `group_size`; None: as many.
          first: number of each prompt's first completion, which names its noise; None: 0.
          limits: longest completion of each prompt, at most `max_tokens`; None: that.
        """
        rows = len(prompts.uid)
        self.prompts, self.max_tokens, self.ends, self.mesh = prompts, max_tokens, ends, mesh
        self._place, self._few = place, few
        self.wanted = np.full(rows, group_size) if wanted is None else np.asarray(wanted)
        self.limits = np.full(rows, max_tokens) if limits is None else np.asarray(limits)
        keys = sequence_keys(key, prompts.uid, group_size, first)
        self.words_of_keys, self.kind_of_keys = jax.device_get(key_data(keys)), key_impl(keys)
        self.shards = data_size(mesh)
        self.slots, per_shard = layout(rows, group_size, slots, self.shards)
        rounded = power_of_two(per_shard)
        if few and (slots == 0 or rounded * self.slots * self.shards <= slots):
            per_shard = rounded
        lanes = (self.shards, per_shard)
        self.row_of_lane = np.full(lanes, -1)
        # Completions of its row that a lane makes: from the first, before the other.
        self.first, self.until = np.zeros(lanes, np.int32), np.zeros(lanes, np.int32)
        self.next_row = 0
        shape = (rows, group_size)
        self.tokens: Int[ndarray, "P G T"] = np.zeros((*shape, max_tokens), np.int32)
        self.logp: Float32[ndarray, "P G T"] = np.zeros((*shape, max_tokens), np.float32)
        self.length: Int[ndarray, "P G"] = np.zeros(shape, np.int64)
        self.ended: Bool[ndarray, "P G"] = np.zeros(shape, bool)  # by EOS or a stop string
        # A completion that nobody wants is done from the start.
        self.over: Bool[ndarray, "P G"] = np.arange(group_size) >= self.wanted[:, None]
        self.cut = np.zeros(shape, bool)  # by a stop string, which the device does not know of

    @property
    def done(self) -> bool:
        """True when every completion is."""
        return bool(self.over.all())

    @property
    def _mine(self) -> Bool[ndarray, "R M G"]:
        """True at the completions of its row that each lane is to make."""
        member = np.arange(self.over.shape[1])
        return (member >= self.first[..., None]) & (member < self.until[..., None])

    @property
    def _begun(self) -> Int[ndarray, "R M"]:
        """Number of the completion that each lane begins next; from `until` on there is none."""
        ended = (self._mine & self.over[self.row_of_lane]).sum(-1)
        return np.minimum(self.first + self.slots + ended, self.until)

    def _next_job(self) -> tuple[int, int, int] | None:
        """What a free lane does: the next prompt, or half of what another lane has not begun."""
        if self.next_row < len(self.prompts.uid):
            self.next_row += 1
            return self.next_row - 1, 0, int(self.wanted[self.next_row - 1])
        waiting = self.until - self._begun
        if waiting.max(initial=0) == 0:
            return None
        busiest = np.unravel_index(waiting.argmax(), waiting.shape)
        row, until = int(self.row_of_lane[busiest]), int(self.until[busiest])
        self.until[busiest] -= -(-int(waiting[busiest]) // 2)
        return row, int(self.until[busiest]), until

    @property
    def sizes_of_calls(self) -> tuple[int, int]:
        """Numbers of lanes of a device that may be filled in one call: one, and many."""
        return 1, max(1, self.first.shape[1] // 4)

    def assign(self) -> list[Int[ndarray, "R B"]]:
        """Gives free lanes something to do; returns these lanes in calls of one or many a device.

        There are two numbers of lanes, so that two programs serve; a lane number out of range
        stands for none.
        """
        free = ~(self._mine & ~self.over[self.row_of_lane]).any(-1)
        per_shard, given = self.first.shape[1], [[] for _ in range(self.shards)]
        for lane, shard in np.argwhere(free.T).tolist():
            if (job := self._next_job()) is None:
                break
            self.row_of_lane[shard, lane], self.first[shard, lane], self.until[shard, lane] = job
            given[shard].append(lane)
        calls, (few, many) = [], self.sizes_of_calls
        while any(given):
            size = many if max(map(len, given)) >= many else few
            call = np.full((self.shards, size), per_shard)
            for shard, lanes in enumerate(given):
                call[shard, : len(lanes[:size])] = lanes[:size]
                given[shard] = lanes[size:]
            calls.append(call)
        return calls

    @property
    def sizes(self) -> Iterator[tuple[int, int]]:
        """Lanes of a device and slots of a lane, each time with a quarter of the slots before."""
        lanes, slots = self.first.shape[1], self.slots
        while lanes * slots >= _NARROWING:
            total = lanes * slots // _NARROWING
            slots = max(1, slots // _NARROWING)
            lanes = total // slots
            yield lanes, slots

    def narrow(self, drawn: decode.Drawn, steps: int) -> tuple[Any, ...] | None:
        """Where to go on when nothing is left to begin and most slots are idle.

        Args:
          drawn: the last call's.
          steps: another program is worth it if as many steps may still follow.

        Returns:
          What `decode.narrow` takes, for the fewest slots that hold all that is running; None as
          long as it is not worth it.
        """
        if self.next_row < len(self.prompts.uid) or (self.until > self._begun).any():
            return None
        member = np.asarray(jax.device_get(drawn.goes_on)).reshape(*self.first.shape, -1)
        at = np.minimum(member, self.over.shape[1] - 1)
        running = (member < self.until[..., None]) & ~self.over[self.row_of_lane[..., None], at]
        left = (
            self.limits[self.row_of_lane][..., None] - self.length[self.row_of_lane[..., None], at]
        )
        if np.where(running, left, 0).max() < steps:
            return None
        found = None
        for lanes, slots in self.sizes:
            if (-(-running.sum(-1) // slots)).sum(-1).max() > lanes:
                break
            found = lanes, slots
        return None if found is None else self._narrowed(member, running, *found)

    def _narrowed(
        self, member: Int[ndarray, "R M S"], running: Bool[ndarray, "R M S"], lanes: int, slots: int
    ) -> tuple[Any, ...]:
        lane = np.zeros((self.shards, lanes), np.int32)
        slot = np.zeros((*lane.shape, slots), np.int32)
        goes_on = np.zeros_like(slot)
        for shard in range(self.shards):
            rows = [
                (old, at[i : i + slots])
                for old, at in enumerate(map(np.flatnonzero, running[shard]))
                for i in range(0, len(at), slots)
            ]
            for new in range(lanes):
                old, at = rows[new] if new < len(rows) else (0, np.zeros(0, np.int64))
                lane[shard, new], slot[shard, new, : len(at)] = old, at
                goes_on[shard, new] = self.until[shard, old]
                goes_on[shard, new, : len(at)] = member[shard, old, at]
        device = np.arange(self.shards)[:, None]
        self.row_of_lane, self.until = self.row_of_lane[device, lane], self.until[device, lane]
        self.first = self.until  # nothing is left to begin
        self.slots = slots
        return hosts.place((lane, slot, goes_on), data_sharding(self.mesh))

    def all_lanes(self) -> tuple[Any, ...]:
        """What all lanes have been given at first, as the device wants it."""
        self.assign()
        lanes = np.broadcast_to(np.arange(self.first.shape[1]), self.first.shape)
        return (*self.of_lanes(lanes), self.orders_of_lanes()[1])

    def of_lanes(self, lanes: Int[ndarray, "R B"]) -> tuple[Any, ...]:
        """Prompts, keys, and first and last completions of some lanes, as the device wants them."""
        at = np.arange(self.shards)[:, None], np.minimum(lanes, self.first.shape[1] - 1)
        row = np.where(lanes < self.first.shape[1], self.row_of_lane[at], -1).reshape(-1)
        prompts = jax.tree.map(lambda x: x[row], self.prompts)
        # A lane without a prompt reads nothing: a mask without a token.
        prompts = dataclasses.replace(prompts, mask=prompts.mask & (row >= 0)[:, None])
        keys = wrap_key_data(self.words_of_keys[row], impl=self.kind_of_keys)
        args = (prompts, keys, self.first[at].reshape(-1), self.until[at].reshape(-1))
        return self._place(args, data_sharding(self.mesh))

    def orders_of_lanes(self) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
        """The completion before which each lane stops, and the tokens of its longest one."""
        limits = self.limits[self.row_of_lane.reshape(-1)].astype(np.int32)
        return self._place((self.until.reshape(-1), limits), data_sharding(self.mesh))

    def note(self, drawn: decode.Drawn, meter: Meter) -> list[tuple[int, list[int]]]:
        """Writes down what was drawn; returns number and tokens of completions that ended."""
        steps, token, logp, member, index = jax.device_get(
            (drawn.steps, drawn.token, drawn.logp, drawn.member, drawn.index)
        )
        over_before, length_before = self.over.copy(), self.length.sum()
        live = member[:steps] >= 0
        self._note_routes(drawn)
        row_of_slot = self.row_of_lane.reshape(-1)[None, :, None]
        row = np.broadcast_to(row_of_slot, live.shape)[live]
        member, index = member[:steps][live], index[:steps][live]
        token, logp = token[:steps][live], logp[:steps][live]
        self.tokens[row, member, index] = token
        self.logp[row, member, index] = logp
        if drawn.experts is not None and self.experts is not None:
            experts = np.asarray(jax.device_get(drawn.experts))[:steps][live]
            self.experts[row, member, index] = experts
        kept = ~self.over[row, member]  # what follows a stop string is not
        self.length[row[kept], member[kept]] = index[kept] + 1
        eos = kept & np.isin(token, self.ends.eos_ids)
        self.ended[row[eos], member[eos]] = True
        if self.ends.strings:
            self._cut_at_stop_strings(np.unique(np.stack([row[kept], member[kept]], 1), axis=0))
        started = np.zeros_like(self.over)
        started[row, member] = True
        self.over |= self.ended | (started & (self.length >= self.limits[:, None]))
        meter.drawn += int(self.length.sum() - length_before)
        meter.slot_steps += int(steps) * self.row_of_lane.size * self.slots
        size = self.over.shape[1]
        fresh = np.argwhere(self.over & ~over_before & (np.arange(size) < self.wanted[:, None]))
        return [
            (int(p) * size + int(g), self.tokens[p, g, : self.length[p, g]].tolist())
            for p, g in fresh
        ]

    def _note_routes(self, drawn: decode.Drawn) -> None:
        """Writes down which experts the prompts that the lanes are at have taken."""
        if drawn.read is None:
            return
        found, row = np.asarray(jax.device_get(drawn.read)), self.row_of_lane.reshape(-1)
        if self.read is None:
            self.read = np.zeros((len(self.prompts.uid), *found.shape[1:]), found.dtype)
            self.experts = np.zeros((*self.tokens.shape, *found.shape[2:]), found.dtype)
        self.read[row[row >= 0]] = found[row >= 0]

    def width(self, steps: int) -> int:
        """Positions the rings need for the next steps, in a bucket of whole calls."""
        if self._few:
            return ring_widths(self.max_tokens, steps)[-1]
        running = np.where(self.over, 0, self.length)
        needed = max(1, int(running.max(initial=0))) + steps - 1
        return bucket(min(needed, max(1, self.max_tokens - 1)), steps)

    def stopped(self) -> Array | None:
        """Completions of the lanes' prompts that a stop string has ended; None without any."""
        if not self.ends.strings:
            return None
        cut = self.cut[self.row_of_lane.reshape(-1)]
        return self._place(cut, data_sharding(self.mesh))

    def _cut_at_stop_strings(self, rows: Int[ndarray, "M 2"]) -> None:
        for row, member in rows.tolist():
            end = self.ends.at_string(self.tokens[row, member, : self.length[row, member]])
            if end:
                self.cut[row, member] = not self.ended[row, member]
                self.length[row, member], self.ended[row, member] = end, True

    def rollouts(self) -> Rollouts:
        """What was drawn, cut to the bucket of the longest completion."""
        width = min(bucket(int(self.length.max(initial=1))), self.max_tokens)
        mask: Bool[ndarray, "P G W"] = np.arange(width) < self.length[..., None]
        experts = None
        if self.experts is not None and self.read is not None:
            experts = self.experts[:, :, :width].copy()
            experts[:, :, 0] = self.read[:, None, -1]  # the prompt's end predicts first tokens
        return Rollouts(
            prompts=dataclasses.replace(self.prompts, experts=self.read),
            experts=experts,
            tokens=self.tokens[..., :width],
            mask=mask,
            behavior_logp=np.where(mask, self.logp[..., :width], np.float32(0)),
            finished=self.ended,
        )


def ring_widths(max_tokens: int, steps: int) -> list[int]:
    """Positions that rings have one after the other, as completions grow to their limit.

    Args:
      max_tokens: longest completion.
      steps: decode steps of a compiled call.
    """
    lengths = range(steps, max_tokens + steps, steps)
    return sorted({bucket(min(n, max(1, max_tokens - 1)), steps) for n in lengths})


def layout(rows: int, group_size: int, slots: int, shards: int) -> tuple[int, int]:
    """How many slots a lane has, and how many lanes a device.

    All completions get a slot if `slots` is 0 or enough. Otherwise a lane has a quarter of a group:
    the fewer slots, the sooner a lane whose last completions run on is free for the next prompt,
    and the more often a prompt's keys are read.

    Args:
      rows: prompts.
      group_size: completions of each.
      slots: completions in the making at once, over all devices; 0: all.
      shards: devices over which lanes are split.
    """
    if slots == 0 or slots >= rows * group_size:
        return group_size, -(-rows // shards)
    of_lane = max(1, group_size // 4)
    lanes = min(rows, max(shards, slots // of_lane))
    of_lane = min(group_size, max(1, slots // lanes))
    return of_lane, -(-lanes // shards)
