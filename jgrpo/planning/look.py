"""A run looked at on a topology: memory, exchanges and a roofline of each of its programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jgrpo.config import Config
from jgrpo.learner.heads import keeps_reference
from jgrpo.models.architecture import Architecture
from jgrpo.parallel.mesh import axis_sizes
from jgrpo.planner import Plan, plan, size_text
from jgrpo.planning.chips import Topology
from jgrpo.planning.costs import Cost, Costs, Estimate, estimate
from jgrpo.planning.programs import Program, compile_programs, devices

NAMES = {
    "_for_sampling": "cast of the weights",
    "_gathered": "whole weights",
    "unstacked": "weights by layer",
    "start": "reading prompts",
    "resize": "growing the caches",
    "advance": "decoding",
    "admit": "further prompts",
    "facts": "forward pass",
    "logps": "log-probs",
    "update": "update",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step in which no completion ends before its limit.

    Attributes:
      seconds: its programs one after the other, each at its roofline; a lower bound.
      tokens: completion tokens.
      bottleneck: the program that takes longest, and what it waits for.
    """

    seconds: float
    tokens: int
    bottleneck: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """A run on a topology.

    Attributes:
      cfg: the run.
      arch: its model.
      topology: where.
      plan: its batches, and the planner's arithmetic.
      programs: what runs there, compiled or (GPUs) by arithmetic.
    """

    cfg: Config
    arch: Architecture
    topology: Topology
    plan: Plan
    programs: tuple[Program, ...]

    @property
    def fits(self) -> bool:
        """Whether every program has the memory that it takes."""
        hbm = self.topology.chip.hbm
        return all(program.compiled and program.total <= hbm for program in self.programs)

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes of the mesh axes."""
        return axis_sizes(self.cfg.mesh, self.topology.count)

    @property
    def costs(self) -> dict[str, Cost]:
        """What one run of a program takes on each chip, by name; of those that compute."""
        costs = Costs(cfg=self.cfg, arch=self.arch, plan=self.plan, mesh=self.mesh)
        known: dict[str, Callable[[], Cost]] = {
            "start": costs.prefill,
            "advance": lambda: costs.decode(costs.decode_calls()[-1][0]),
            "facts": costs.forward,
            "logps": costs.forward,
            "update": costs.update,
        }
        return {
            program.name: dataclasses.replace(
                known[program.name](), collectives=program.collectives
            )
            for program in self.programs
            if program.name in known and program.compiled
        }

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The roofline of these; empty where the chip's speed is not known."""
        if not self.topology.chip.flops:
            return {}
        return {name: estimate(cost, self.topology) for name, cost in self.costs.items()}

    @property
    def step(self) -> Step | None:
        """A whole step; None if a program does not fit, or the chip's speed is not known."""
        found = self.estimates
        if not self.fits or not found:
            return None
        costs = Costs(cfg=self.cfg, arch=self.arch, plan=self.plan, mesh=self.mesh)
        parts = [(1.0, "facts"), (float(self.plan.updates), "update"), (costs.waves, "start")]
        parts.append((self.cfg.inexact_sampler + keeps_reference(self.cfg.method), "logps"))
        spent = {name: times * found[name].seconds for times, name in parts if name in found}
        if "advance" in found:
            exchanged = self.costs["advance"].collectives
            spent["advance"] = sum(
                calls
                * estimate(
                    dataclasses.replace(costs.decode(width), collectives=exchanged), self.topology
                ).seconds
                for width, calls in costs.decode_calls()
            )
        longest = max(spent, key=lambda name: spent[name])
        return Step(
            seconds=sum(spent.values()),
            tokens=self.plan.completions * self.cfg.rollout.max_completion_tokens,
            bottleneck=f"{NAMES[longest]} ({found[longest].bottleneck})",
        )


def look(
    cfg: Config,
    arch: Architecture,
    topology: Topology,
    *,
    compiles: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Look:
    """Looks at a run.

    Args:
      cfg: the run.
      arch: its model.
      topology: where.
      compiles: False: by arithmetic alone, in no time; so it always is for GPUs.
      say: told of each program that is compiled.

    Raises:
      ValueError: if the run cannot be split over so many chips, or they cannot be compiled for.
    """
    the_plan = plan(cfg, arch, topology.count, topology.chip.platform)
    if compiles and topology.chip.platform != "gpu":
        on = devices(topology)
        programs = compile_programs(cfg, arch, on, the_plan.memory, say)
    else:
        programs = _by_arithmetic(cfg, arch, the_plan, axis_sizes(cfg.mesh, topology.count))
    return Look(cfg=cfg, arch=arch, topology=topology, plan=the_plan, programs=tuple(programs))


def _by_arithmetic(
    cfg: Config, arch: Architecture, the_plan: Plan, mesh: dict[str, int]
) -> list[Program]:
    """Decoding and update, from the planner's memory and the costs' exchanges."""
    memory, costs = the_plan.memory, Costs(cfg=cfg, arch=arch, plan=the_plan, mesh=mesh)
    always = {
        "parameters": memory.params,
        "optimizer": memory.optimizer,
        "frozen": memory.frozen,
        "other_weights": memory.reference + memory.roles + memory.critic,
    }
    sampling = {
        "sampling_weights": memory.rollout_weights,
        "kv_cache": memory.kv_cache,
        "temporaries": memory.sampler_logits,
    }
    learning = {
        "gradients": memory.gradients,
        "activations": memory.activations,
        "temporaries": memory.logits_chunk,
    }
    found = [("update", learning, costs.update())]
    if cfg.method.source != "reference":
        width, _ = costs.decode_calls()[-1]
        found.insert(0, ("advance", sampling, costs.decode(width)))
    return [
        Program(name=name, hbm=always | own, collectives=cost.collectives)
        for name, own, cost in found
    ]


def to_json(this: Look) -> dict[str, Any]:
    """All that is known, as JSON: bytes and operations on each chip, seconds."""
    costs, estimates, step = this.costs, this.estimates, this.step
    chip = this.topology.chip
    return {
        "topology": this.topology.name,
        "chips": this.topology.count,
        "hbm_of_chip": chip.hbm,
        "mesh": this.mesh,
        "fits": this.fits,
        "compiled": chip.platform != "gpu",
        "programs": [
            {
                "name": program.name,
                "what": NAMES[program.name],
                "fits": program.compiled and program.total <= chip.hbm,
                "hbm": dict(program.hbm),
                "hbm_total": program.total,
                "flops": costs[program.name].flops if program.name in costs else None,
                "collectives": [dataclasses.asdict(found) for found in program.collectives],
                "estimate": _estimate_json(estimates.get(program.name)),
            }
            for program in this.programs
        ],
        "step": step and dataclasses.asdict(step) | {"tokens_per_s": step.tokens / step.seconds},
    }


def _estimate_json(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return dataclasses.asdict(found) | {"seconds": found.seconds, "bottleneck": found.bottleneck}


def describe(this: Look) -> str:
    """The same for a terminal."""
    chip, mesh = this.topology.chip, this.mesh
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.items())
    how = "by arithmetic" if chip.platform == "gpu" else "as XLA compiles them"
    lines = [
        f"{this.topology.name}: {this.topology.count} chips, {size_text(chip.hbm)} each for "
        f"programs; mesh {sizes}; programs {how}"
    ]
    costs, estimates = this.costs, this.estimates
    for program in this.programs:
        lines += ["", f"{NAMES[program.name]} ({program.name})", f"  memory     {_memory(program)}"]
        if program.total > chip.hbm or not program.compiled:
            lines.append(f"             DOES NOT FIT into {size_text(chip.hbm)}")
        if program.name in costs:
            lines.append(f"  operations {costs[program.name].flops:.2e} a chip")
        lines += [
            f"  exchanges  {c.kind} over {' and '.join(c.axes) or 'nothing'}: {c.count:,} times, "
            f"{size_text(c.bytes)} in all"
            for c in program.collectives
        ]
        if (found := estimates.get(program.name)) is not None:
            lines.append(
                f"  estimate   at least {found.seconds:.3g} s, by {found.bottleneck} (compute "
                f"{found.compute_s:.3g}, memory {found.memory_s:.3g}, exchanges "
                f"{found.exchange_s:.3g} s)"
            )
    if (step := this.step) is not None:
        lines += [
            "",
            f"step: estimated at {step.seconds:.3g} s at least, {step.tokens / step.seconds:,.0f} "
            f"completion tokens a second at most; longest: {step.bottleneck}",
        ]
    return "\n".join(lines)


def _memory(program: Program) -> str:
    kinds = ", ".join(
        f"{kind.replace('_', ' ')} {size_text(size)}" for kind, size in program.hbm.items() if size
    )
    return f"{size_text(program.total)}: {kinds}"
