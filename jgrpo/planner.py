"""What a run would do and hold in memory, worked out from its config before anything is compiled.

The numbers are arithmetic on sizes, not measurements: batch sizes are exact, memory is an estimate
of the largest arrays and leaves out what the compiler and its temporaries add.
Letters: N parameters, L layers, D model width, H query heads, K key/value heads, E head width,
F feed-forward width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping

from jgrpo.algo import needs
from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.models import architecture
from jgrpo.models.architecture import Architecture, logical_axes, num_params
from jgrpo.parallel.mesh import axis_sizes
from jgrpo.parallel.rules import LOGICAL_TO_MESH

_WIDTH_BYTES = {"float32": 4, "bfloat16": 2}
_STATISTIC_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes a device holds, by kind.

    Attributes:
      params: N weights in `model.param_dtype`, split over the mesh, as the next three are.
      optimizer: AdamW's two moments, in `model.param_dtype`.
      reference: N weights of the reference policy, if a slot of the method needs it.
      gradients: N sums of the gradient in float32, and one microbatch's share of them if there are
        several; held while learning.
      activations: what the backward pass of one microbatch keeps; held while learning.
      logits_chunk: logits of `optim.logp_chunk_tokens` tokens and their gradient; while learning.
      rollout_weights: copy of the weights in `model.dtype`, if that differs; while sampling.
      kv_cache: keys and values of prompts and completions; held while sampling.
      sampler_logits: logits, log-probs and noise of one token of every completion; while sampling.
    """

    params: int
    optimizer: int
    reference: int
    gradients: int
    activations: int
    logits_chunk: int
    rollout_weights: int
    kv_cache: int
    sampler_logits: int

    @property
    def peak(self) -> int:
        """Bytes that are always held, plus the larger of sampling and learning."""
        always = self.params + self.optimizer + self.reference
        learning = self.gradients + self.activations + self.logits_chunk
        sampling = self.rollout_weights + self.kv_cache + self.sampler_logits
        return always + max(learning, sampling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The batch of a step, how it is cut up, and the memory it takes.

    Attributes:
      steps: steps of the run.
      devices: devices it runs on.
      num_params: parameters of the model.
      prompts: prompts a step trains on.
      completions: completions a step trains on.
      tokens: most tokens of a step: each prompt once, each completion at its limit.
      sampling_rounds: most rounds of sampling in a step; above 1 only for dynamic sampling.
      updates: optimizer updates a step.
      completions_per_update: completions of one update.
      microbatches: forward and backward passes of one update, on each device.
      completions_per_microbatch: completions of such a pass.
      memory: estimated bytes per device.
    """

    steps: int
    devices: int
    num_params: int
    prompts: int
    completions: int
    tokens: int
    sampling_rounds: int
    updates: int
    completions_per_update: int
    microbatches: int
    completions_per_microbatch: int
    memory: Memory


def plan(cfg: Config, arch: Architecture, num_devices: int) -> Plan:
    """Works out the plan of a run.

    Args:
      cfg: a checked config.
      arch: the model's architecture.
      num_devices: devices of all processes together.

    Raises:
      ValueError: if the mesh does not multiply to the number of devices, a batch does not divide
        evenly over it, or a sequence is longer than the model allows.
    """
    prompts, group_size = cfg.data.num_prompts_per_step, cfg.group_rows
    sizes = axis_sizes(cfg.mesh, num_devices)
    data_parts = sizes["replica"] * sizes["fsdp"]
    update_prompts = prompts // cfg.optim.minibatches
    device_completions = update_prompts // data_parts * group_size
    micro = cfg.optim.microbatch_completions or device_completions
    if update_prompts % data_parts:
        raise ValueError(
            f"data.num_prompts_per_step / optim.minibatches = {update_prompts} prompts of an "
            f"update must divide evenly over mesh.replica x mesh.fsdp = {data_parts} devices"
        )
    if device_completions % micro:
        raise ValueError(
            f"optim.microbatch_completions must divide the {device_completions} completions of an "
            f"update on each device, got {micro}"
        )
    longest = cfg.data.max_prompt_tokens + cfg.rollout.max_completion_tokens
    if longest > arch.max_positions:
        raise ValueError(
            f"data.max_prompt_tokens + rollout.max_completion_tokens = {longest} tokens, but "
            f"{cfg.model.path!r} knows {arch.max_positions} positions"
        )
    completion_tokens = prompts * group_size * cfg.rollout.max_completion_tokens
    return Plan(
        steps=cfg.run.steps,
        devices=num_devices,
        num_params=num_params(arch),
        prompts=prompts,
        completions=prompts * group_size,
        tokens=prompts * cfg.data.max_prompt_tokens + completion_tokens,
        sampling_rounds=cfg.method.dynamic_max_rounds if cfg.method.sampler != "uniform" else 1,
        updates=cfg.optim.epochs_per_step * cfg.optim.minibatches,
        completions_per_update=update_prompts * group_size,
        microbatches=device_completions // micro,
        completions_per_microbatch=micro,
        memory=_memory(
            cfg,
            arch,
            weights=_device_params(arch, sizes),
            device_prompts=prompts // data_parts,
            micro=micro,
            microbatches=device_completions // micro,
        ),
    )


def describe(the_plan: Plan) -> str:
    """Writes a plan as a table of lines `name  value`, for a terminal."""
    memory = the_plan.memory
    rounds = the_plan.sampling_rounds
    rows = [
        ("parameters", f"{the_plan.num_params:,}"),
        ("devices", f"{the_plan.devices}"),
        ("steps", f"{the_plan.steps:,}"),
        ("prompts", f"{the_plan.prompts:,} a step"),
        ("completions", f"{the_plan.completions:,} a step"),
        ("tokens", f"at most {the_plan.tokens:,} a step"),
        ("sampling rounds", "1 a step" if rounds == 1 else f"at most {rounds} a step"),
        (
            "updates",
            f"{the_plan.updates} a step, of {the_plan.completions_per_update:,} completions",
        ),
        (
            "microbatches",
            f"{the_plan.microbatches} an update, of {the_plan.completions_per_microbatch:,} "
            "completions on each device",
        ),
        ("memory", f"about {_bytes(memory.peak)} per device (estimate), of which"),
        *(
            (f"  {field.name.replace('_', ' ')}", _bytes(getattr(memory, field.name)))
            for field in dataclasses.fields(memory)
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _device_params(arch: Architecture, mesh_sizes: Mapping[str, int]) -> int:
    """Number of weights that one device stores, by the rules that split them."""
    lengths = architecture.axis_sizes(arch)

    def count(tree: architecture.AxesTree) -> int:
        total = 0
        for leaf in tree.values():
            if isinstance(leaf, dict):
                total += count(leaf)
                continue
            size = math.prod(lengths[name] for name in leaf)
            for name in leaf:
                parts = mesh_sizes[axis] if (axis := LOGICAL_TO_MESH[name]) else 1
                # A dim that its axis does not divide is stored whole.
                size //= parts if lengths[name] % parts == 0 else 1
            total += size
        return total

    return count(logical_axes(arch))


def _memory(
    cfg: Config,
    arch: Architecture,
    *,
    weights: int,
    device_prompts: int,
    micro: int,
    microbatches: int,
) -> Memory:
    held = _WIDTH_BYTES[cfg.model.param_dtype]
    moving = _WIDTH_BYTES[cfg.model.dtype]
    group_size = cfg.rollout.group_size
    samples = cfg.method.source == "policy"
    chunk = cfg.rollout.chunk_tokens
    cached_tokens = device_prompts * (
        bucket(cfg.data.max_prompt_tokens)
        + group_size * bucket(cfg.rollout.max_completion_tokens, chunk)
    )
    token_kv = 2 * arch.num_layers * arch.num_kv_heads * arch.head_width * moving
    learned_tokens = micro * cfg.rollout.max_completion_tokens
    logit_rows = min(cfg.optim.logp_chunk_tokens, learned_tokens)
    sampled_rows = device_prompts * group_size
    return Memory(
        params=weights * held,
        optimizer=2 * weights * held,
        reference=weights * held if "ref_logp" in needs(cfg.method) else 0,
        gradients=weights * (_STATISTIC_BYTES + (held if microbatches > 1 else 0)),
        activations=_activations(cfg, arch, micro),
        logits_chunk=2 * logit_rows * arch.vocab_size * _STATISTIC_BYTES,
        rollout_weights=weights * moving if samples and moving != held else 0,
        kv_cache=cached_tokens * token_kv if samples else 0,
        sampler_logits=3 * sampled_rows * arch.vocab_size * _STATISTIC_BYTES if samples else 0,
    )


def _activations(cfg: Config, arch: Architecture, micro: int) -> int:
    """Bytes that the backward pass of `micro` completions and their prompts keeps.

    A layer keeps for each token its input (D); with remat `dots` also the outputs of the matmuls
    (2D, (H + 2K)E, 2F); with remat `none` also what lies between them (2D, HE, F), and the
    attention scores and probabilities in float32. With remat, those of one layer exist at a time.
    """
    limit, prompt = cfg.rollout.max_completion_tokens, cfg.data.max_prompt_tokens
    prompts = math.ceil(micro / cfg.rollout.group_size)
    heads_width = arch.num_heads * arch.head_width
    kv_width = 2 * arch.num_kv_heads * arch.head_width
    inputs = arch.d_model
    dots = 2 * arch.d_model + heads_width + kv_width + 2 * arch.ffn_width
    between = 2 * arch.d_model + heads_width + arch.ffn_width
    kept = {"full": inputs, "dots": inputs + dots, "none": inputs + dots + between}
    one_layer = {"full": dots + between, "dots": between, "none": 0}
    remat = cfg.model.remat
    values = kept[remat] * arch.num_layers + one_layer[remat]
    tokens = micro * limit + prompts * prompt
    pairs = micro * limit * (prompt + limit) + prompts * prompt * prompt
    scores = 2 * arch.num_heads * pairs * _STATISTIC_BYTES
    scored_layers = arch.num_layers if remat == "none" else 1
    return tokens * values * _WIDTH_BYTES[cfg.model.dtype] + scores * scored_layers


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
