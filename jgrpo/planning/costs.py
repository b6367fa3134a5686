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
from jgrpo.parallel.rules import DATA_AXES
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
        """One update; with remat `full` or `dots` the forward pass runs twice.

        Beside adapters the frozen matrices have no gradient: two passes in place of three.
        """
        again, lora = self.cfg.model.remat == "full", self.cfg.model.lora.rank > 0
        body, head = (2 if lora else 3) + again, 3 if lora else 4  # chunks of logits come twice
        cost = self._learner_pass(self.plan.completions_per_update, body, head)
        trained = self.plan.num_trained / self._tensor / self._experts if lora else self._weights(1)
        held = trained * WIDTH_BYTES[self.cfg.model.param_dtype] / self._split
        gradients = trained * FLOAT32_BYTES
        several = self.plan.microbatches > 1
        moved = 6 * held + gradients / self._split * (2 + 2 * self.plan.microbatches * several)
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
        moved = self._drawing_reads + self._outputs(tokens) + tokens * self._kept
        exchanged = (*self._fetched(1), *self._shared(tokens, 1))
        return Cost(flops=flops, bytes=moved, collectives=exchanged)

    def decode(self, width: int) -> Cost:
        """One call of `rollout.chunk_tokens` steps, with rings of so many positions."""
        lanes, of_lane = self._slots
        slots, steps = lanes * of_lane, self.cfg.rollout.chunk_tokens
        flops = self._flops(slots, slots * (self._prompt + width)) + 2 * slots * self._head
        cached = (lanes * self._prompt + slots * width) * self._kept
        moved = self._drawing_reads + cached + 3 * slots * self.arch.vocab_size * FLOAT32_BYTES
        exchanged = (*self._fetched(steps), *self._shared(slots, steps))
        return Cost(flops=steps * flops, bytes=steps * moved, collectives=exchanged)

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
        return max(1.0, rows / (lanes * of_lane * self._parts))

    @property
    def _slots(self) -> tuple[int, int]:
        return device_slots(self.cfg, self._parts)

    @property
    def _parts(self) -> int:
        """Parts into which prompts are split; the chips of a tensor axis share one."""
        return math.prod(self.mesh[axis] for axis in DATA_AXES)

    @property
    def _tensor(self) -> int:
        return self.mesh["tensor"]

    @property
    def _experts(self) -> int:
        return self.mesh["expert"]

    @property
    def _kept(self) -> float:
        """Bytes of the keys and values of a token on one chip."""
        return token_kv(self.cfg, self.arch) / self._tensor

    @property
    def _prompt(self) -> int:
        return bucket(self.cfg.data.max_prompt_tokens)

    @property
    def _split(self) -> int:
        return self.mesh["fsdp"]

    @property
    def _attention(self) -> Real:
        """Weights of the matrices of a layer's attention on a chip, gathered over `fsdp`."""
        a = self.arch
        return a.d_model * (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_width / self._tensor

    @property
    def _layer(self) -> Real:
        """Weights of all matrices of a layer on a chip, gathered likewise."""
        a = self.arch
        if a.num_experts:
            of_experts = a.num_experts * (3 * a.expert_width + 1) / self._experts
            return self._attention + a.d_model * of_experts
        return self._attention + 3 * a.d_model * a.ffn_width / self._tensor

    @property
    def _passed(self) -> Real:
        """Weights of a layer that a token is multiplied with, those of other chips left out.

        Its experts may lie on other chips; then this one computes as much for tokens of others.
        """
        return self._attention + 3 * self.arch.d_model * self.arch.active_ffn_width / self._tensor

    @property
    def _head(self) -> Real:
        """Weights of the LM head on a chip: an embedding that is one too is not split."""
        parts = 1 if self.arch.tied_embeddings else self._tensor
        return self.arch.vocab_size * self.arch.d_model / parts

    def _weights(self, width: int) -> Real:
        return (self.arch.num_layers * self._layer + self._head) * width

    def _flops(self, tokens: Real, pairs: Real) -> Real:
        """Of the layers, forward; `pairs` of a token and one that it sees."""
        attention = 4 * self.arch.num_heads * self.arch.head_width / self._tensor
        return self.arch.num_layers * (2 * tokens * self._passed + attention * pairs)

    def _read(self, times: Real) -> Real:
        """Bytes of all weights as they are multiplied with; gathered ones are written as well."""
        width = WIDTH_BYTES[self.cfg.model.dtype]
        return times * self._weights(width) * (2 if self._split > 1 else 1)

    @property
    def _drawing_reads(self) -> Real:
        """Bytes of the weights for one token of every slot."""
        if self.cfg.rollout.gather_weights:
            return self._weights(WIDTH_BYTES[self.cfg.model.dtype])
        return self._read(1)

    def _fetched(self, times: int) -> tuple[Collective, ...]:
        """The weights that sampling puts together, if they are not whole before."""
        return () if self.cfg.rollout.gather_weights else self._gathered(times)

    def _outputs(self, tokens: Real) -> Real:
        """Bytes of the outputs of all matrix products, written and read."""
        a = self.arch
        split = (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_width + 3 * a.active_ffn_width
        values = 2 * a.d_model + split / self._tensor
        return 2 * tokens * a.num_layers * values * WIDTH_BYTES[self.cfg.model.dtype]

    def _learner_pass(self, completions: int, body: int, head: int) -> Cost:
        """So many passes through the layers, and through the head."""
        group, limit = self.cfg.group_rows, self.cfg.rollout.max_completion_tokens
        mine = completions / self._parts
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
            collectives=(*self._gathered(parts * body), *self._shared(tokens, body)),
        )

    def _gathered(self, times: int) -> tuple[Collective, ...]:
        """The weights of the layers, put together so often."""
        width = WIDTH_BYTES[self.cfg.model.dtype]
        return self._over("fsdp", "all-gather", self.arch.num_layers * self._layer * width, times)

    def _shared(self, tokens: Real, times: int) -> tuple[Collective, ...]:
        """What layers make of tokens, so often: sums of `tensor`, rows to `expert` and back."""
        stream = tokens * self.arch.d_model * WIDTH_BYTES[self.cfg.model.dtype]
        of_layers = self.arch.num_layers * stream
        rows = of_layers * self._experts
        return (
            *self._over("tensor", "all-reduce", 2 * of_layers, times),
            *self._over("expert", "all-gather", rows, times),
            *self._over("expert", "reduce-scatter", rows, times),
        )

    def _over(self, axis: str, kind: str, size: Real, times: int) -> tuple[Collective, ...]:
        if self.mesh[axis] == 1:
            return ()
        whole = {"kind": kind, "axes": (axis,), "size": self.mesh[axis], "count": times}
        return (Collective(bytes=int(size * times), **whole),)
