"""What the programs of a run compute and move, counted from the architecture, and how long it is.

XLA's own count has the body of a scan once, so operations are counted here: two for each weight and
token, attention over what a token sees (half of the square, if causal), the LM head on completions
alone. Bytes are those of weights, caches, logits and the outputs of matrix products, each written
and read once. Seconds are a roofline: the largest of operations, bytes and exchanges at the
published peak of the chip. **An estimate, and a lower bound**; nothing here was measured.

Letters as in `models/architecture.py`.
"""

import dataclasses
import math
from typing import TypeAlias

from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.models.architecture import Architecture
from jgrpo.planner import FLOAT32_BYTES, WIDTH_BYTES, Plan, device_slots, token_kv
from jgrpo.planning.chips import Topology
from jgrpo.planning.hlo import Collective
from jgrpo.rollout.work import ring_widths

Real: TypeAlias = int | float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run of a program, on each chip.

    Attributes:
      flops: operations of matrix products.
      bytes: bytes between memory and chip.
      collectives: what the chips exchange.
    """

    flops: Real
    bytes: Real
    collectives: tuple[Collective, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds by what they are spent on, each at the chip's peak; they are taken to overlap.

    Attributes:
      compute_s: operations.
      memory_s: bytes between memory and chip.
      exchange_s: collectives.
    """

    compute_s: float
    memory_s: float
    exchange_s: float

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self.compute_s, self.memory_s, self.exchange_s)

    @property
    def bottleneck(self) -> str:
        """What the longest of them is spent on."""
        named = {"compute": self.compute_s, "memory": self.memory_s, "exchange": self.exchange_s}
        return max(named, key=lambda name: named[name])


def estimate(cost: Cost, topology: Topology) -> Estimate:
    """How long a cost takes at least."""
    chip = topology.chip
    exchange = sum((c.sent / topology.axis_speed(c.size) for c in cost.collectives), 0.0)
    return Estimate(
        compute_s=cost.flops / chip.flops,
        memory_s=cost.bytes / chip.hbm_speed,
        exchange_s=exchange,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of a run's programs on a mesh.

    Attributes:
      cfg: the run.
      arch: its model.
      plan: its batches.
      mesh: sizes of the mesh axes.
    """

    cfg: Config
    arch: Architecture
    plan: Plan
    mesh: dict[str, int]

    def update(self) -> Cost:
        """One update; with remat `full` or `dots` the forward pass runs twice."""
        again = self.cfg.model.remat == "full"
        body, head = 3 + again, 4  # chunks of logits are computed again
        cost = self._learner_pass(self.plan.completions_per_update, body, head)
        held = self._weights(WIDTH_BYTES[self.cfg.model.param_dtype]) / self._split
        summed = self._weights(FLOAT32_BYTES) / self._split
        several = self.plan.microbatches > 1
        moved = 6 * held + summed * (2 + 2 * self.plan.microbatches * several)
        gradients = self._weights(FLOAT32_BYTES)
        exchanges = (
            *cost.collectives,
            *self._over("fsdp", "reduce-scatter", gradients, self.plan.microbatches),
            *self._over("replica", "all-reduce", gradients / self._split, 1),
        )
        return Cost(flops=cost.flops, bytes=cost.bytes + moved, collectives=exchanges)

    def forward(self) -> Cost:
        """The log-probs of all completions of a step."""
        return self._learner_pass(self.plan.completions, 1, 1)

    def prefill(self) -> Cost:
        """The prompts that are read at once: one in every lane."""
        lanes, _ = self._slots
        tokens = lanes * self._prompt
        pairs = tokens * self._prompt / 2
        flops = self._flops(tokens, pairs) + 2 * lanes * self._head
        moved = self._read(1) + self._outputs(tokens) + tokens * token_kv(self.cfg, self.arch)
        return Cost(flops=flops, bytes=moved, collectives=self._gathered(1))

    def decode(self, width: int) -> Cost:
        """One call of `rollout.chunk_tokens` steps, with rings of so many positions."""
        lanes, of_lane = self._slots
        slots, steps = lanes * of_lane, self.cfg.rollout.chunk_tokens
        flops = self._flops(slots, slots * (self._prompt + width)) + 2 * slots * self._head
        cached = (lanes * self._prompt + slots * width) * token_kv(self.cfg, self.arch)
        moved = self._read(1) + cached + 3 * slots * self.arch.vocab_size * FLOAT32_BYTES
        return Cost(flops=steps * flops, bytes=steps * moved, collectives=self._gathered(steps))

    def decode_calls(self) -> list[tuple[int, float]]:
        """Widths of the rings, and how many calls a step makes at each if no completion ends."""
        limit, chunk = self.cfg.rollout.max_completion_tokens, self.cfg.rollout.chunk_tokens
        widths, calls = ring_widths(limit, chunk), []
        last = 0
        for width in widths:
            up_to = limit if width == widths[-1] else min(width, limit)
            calls.append((width, (up_to - last) / chunk * self.waves))
            last = up_to
        return calls

    @property
    def waves(self) -> Real:
        """How often all lanes take a prompt in a step."""
        lanes, of_lane = self._slots
        rows = self.cfg.data.num_prompts_per_step * self.cfg.group_drawn * self.cfg.plan.groups
        return max(1.0, rows / (lanes * of_lane * self.plan.devices))

    @property
    def _slots(self) -> tuple[int, int]:
        return device_slots(self.cfg, self.plan.devices)

    @property
    def _prompt(self) -> int:
        return bucket(self.cfg.data.max_prompt_tokens)

    @property
    def _split(self) -> int:
        return self.mesh["fsdp"]

    @property
    def _layer(self) -> int:
        """Weights of the matrices of a layer."""
        a = self.arch
        heads = (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_width
        return a.d_model * (heads + 3 * a.ffn_width)

    @property
    def _head(self) -> int:
        return self.arch.vocab_size * self.arch.d_model

    def _weights(self, width: int) -> Real:
        return (self.arch.num_layers * self._layer + self._head) * width

    def _flops(self, tokens: Real, pairs: Real) -> Real:
        """Of the layers, forward; `pairs` of a token and one that it sees."""
        attention = 4 * self.arch.num_heads * self.arch.head_width
        return self.arch.num_layers * (2 * tokens * self._layer + attention * pairs)

    def _read(self, times: Real) -> Real:
        """Bytes of all weights as they are multiplied with; gathered ones are written as well."""
        width = WIDTH_BYTES[self.cfg.model.dtype]
        return times * self._weights(width) * (2 if self._split > 1 else 1)

    def _outputs(self, tokens: Real) -> Real:
        """Bytes of the outputs of all matrix products, written and read."""
        a = self.arch
        values = 2 * a.d_model + (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_width
        each = a.num_layers * (values + 3 * a.ffn_width) * WIDTH_BYTES[self.cfg.model.dtype]
        return 2 * tokens * each

    def _learner_pass(self, completions: int, body: int, head: int) -> Cost:
        """So many passes through the layers, and through the head."""
        group, limit = self.cfg.group_rows, self.cfg.rollout.max_completion_tokens
        mine = completions / self.plan.devices
        micro = self.plan.completions_per_microbatch
        prompts = mine / min(micro, group)  # of part of a group the prompt is read again
        pairs = mine * limit * (self._prompt + limit / 2) + prompts * self._prompt**2 / 2
        tokens = mine * limit + prompts * self._prompt
        parts = math.ceil(mine / micro)
        logits = mine * limit * self.arch.vocab_size * FLOAT32_BYTES
        return Cost(
            flops=body * self._flops(tokens, pairs) + head * 2 * mine * limit * self._head,
            bytes=parts * self._read(body)
            + body * self._outputs(tokens)
            + 2 * min(head, 2) * logits,
            collectives=self._gathered(parts * body),
        )

    def _gathered(self, times: int) -> tuple[Collective, ...]:
        """The weights of the layers, put together so often."""
        width = WIDTH_BYTES[self.cfg.model.dtype]
        return self._over("fsdp", "all-gather", self.arch.num_layers * self._layer * width, times)

    def _over(self, axis: str, kind: str, size: Real, times: int) -> tuple[Collective, ...]:
        if self.mesh[axis] == 1:
            return ()
        whole = {"kind": kind, "axes": (axis,), "size": self.mesh[axis], "count": times}
        return (Collective(bytes=int(size * times), **whole),)
