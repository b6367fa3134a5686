"""What a run would do and hold in memory, worked out from its config before anything is compiled.

The numbers are arithmetic on sizes, not measurements: batch sizes are exact, memory is an estimate
of the largest arrays and leaves out what the compiler and its temporaries add.
Letters: N parameters, L layers, D model width, H query heads, K key/value heads, E head width,
F feed-forward width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping

from jgrpo.adapting import trained_axes
from jgrpo.algo import needs
from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.misfits import refuse_misfits
from jgrpo.models import architecture
from jgrpo.models.architecture import INPUT_DIMS, Architecture, logical_axes, num_params
from jgrpo.models.attention import choose
from jgrpo.models.logps import chunk_tokens
from jgrpo.models.lora import BLOCK
from jgrpo.models.moe import MOST_ROWS
from jgrpo.parallel.mesh import axis_sizes
from jgrpo.parallel.rules import DATA_AXES, LOGICAL_TO_MESH
from jgrpo.rollout.work import layout

WIDTH_BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number by the names of `model.dtype`."""
FLOAT32_BYTES = WIDTH_BYTES["float32"]
"""Bytes of statistics, sums and logits."""
# Of one number: int8, its scales left out, and nf4 with a float32 scale for every 64.
_QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / BLOCK}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes a device holds, by kind.

    Attributes:
      params: N weights in `model.param_dtype`, split over the mesh, as the next four are.
      frozen: weights that stay, in `model.dtype` or fewer bits (`model.lora`); then N counts the
        adapters' numbers alone.
      optimizer: AdamW's two moments, in `model.param_dtype`.
      reference: N weights of the reference policy, if a slot of the method needs it.
      roles: weights and moments of policies beside the policy, if the plan has any.
      critic: the read-out of a critic and its two moments in float32, if the method has one.
      gradients: N sums of the gradient in float32, and one microbatch's share of them if there are
        several; held while learning. The critic's are among them.
      activations: what the backward pass of one microbatch keeps; held while learning. A critic
        keeps the states it reads in float32.
      logits_chunk: logits of `optim.logp_chunk_tokens` tokens and their gradient; while learning.
      rollout_weights: copy of the weights that samples, if they are cast to `model.dtype`, rounded
        to int8 (its scales left out) or gathered; while sampling.
      kv_cache: keys and values of prompts and completions; held while sampling.
      sampler_logits: logits, log-probs and noise of one token of every completion; while sampling.
    """

    params: int
    frozen: int
    optimizer: int
    reference: int
    roles: int
    critic: int
    gradients: int
    activations: int
    logits_chunk: int
    rollout_weights: int
    kv_cache: int
    sampler_logits: int

    @property
    def peak(self) -> int:
        """Bytes that are always held, plus the larger of sampling and learning."""
        always = self.params + self.frozen + self.optimizer
        always += self.reference + self.roles + self.critic
        learning = self.gradients + self.activations + self.logits_chunk
        sampling = self.rollout_weights + self.kv_cache + self.sampler_logits
        return always + max(learning, sampling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The batch of a step, how it is cut up, and the memory it takes.

    Attributes:
      steps: steps of the run.
      devices: devices it runs on.
      num_params: parameters of the model, its adapters left out.
      num_trained: parameters that are trained.
      prompts: prompts a step trains on.
      completions: completions a step trains on.
      tokens: most tokens of a step: each prompt once, each completion at its limit.
      sampling_rounds: most rounds of sampling in a step; above 1 only for dynamic sampling.
      updates: optimizer updates a step.
      completions_per_update: completions of one update.
      microbatches: most forward and backward passes of one update, on each device.
      completions_per_microbatch: completions of such a pass.
      memory: estimated bytes per device.
    """

    steps: int
    devices: int
    num_params: int
    num_trained: int
    prompts: int
    completions: int
    tokens: int
    sampling_rounds: int
    updates: int
    completions_per_update: int
    microbatches: int
    completions_per_microbatch: int
    memory: Memory


def plan(cfg: Config, arch: Architecture, num_devices: int, platform: str = "cpu") -> Plan:
    """Works out the plan of a run.

    Args:
      cfg: a checked config.
      arch: the model's architecture.
      num_devices: devices of all processes together.
      platform: what they are, as jax calls it: its kernels decide whether attention keeps scores.

    Raises:
      ValueError: if the mesh does not multiply to the number of devices, the model or a batch does
        not divide evenly over it, a sequence is longer than the model allows, adapters have no
        matrices, or a setting asks for experts that the model does not have.
    """
    prompts = cfg.data.num_prompts_per_step
    group_size = cfg.group_rows * cfg.plan.groups
    sizes = axis_sizes(cfg.mesh, num_devices)
    refuse_misfits(cfg, arch, sizes)
    data_parts = math.prod(sizes[axis] for axis in DATA_AXES)
    update_prompts = prompts // cfg.optim.minibatches
    device_completions = update_prompts // data_parts * group_size * _spread(cfg)
    micro = cfg.optim.microbatch_completions or device_completions
    if update_prompts % data_parts:
        raise ValueError(
            f"data.num_prompts_per_step / optim.minibatches = {update_prompts} prompts of an "
            f"update must divide evenly over mesh.replica x mesh.fsdp x mesh.expert = {data_parts} "
            "devices"
        )
    if device_completions % micro:
        raise ValueError(
            f"optim.microbatch_completions must divide the {device_completions} completions of an "
            f"update on each device, got {micro}"
        )
    completion_tokens = prompts * group_size * cfg.rollout.max_completion_tokens
    return Plan(
        steps=cfg.run.steps,
        devices=num_devices,
        num_params=num_params(arch),
        num_trained=_device_params({}, *trained_axes(cfg, arch)),
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
            sizes,
            slots=device_slots(cfg, data_parts),
            micro=micro,
            microbatches=device_completions // micro,
            platform=platform,
        ),
    )


def _spread(cfg: Config) -> int:
    """Rows of `group_rows` places that an update has for each prompt, at most.

    Above 1 only if the method allocates completions: then long groups take several rows, and in the
    worst case all of a step's are in one minibatch (`places.rows_of`).
    """
    if cfg.method.allocate == "uniform":
        return 1
    most = min(1 + cfg.optim.minibatches, math.ceil(cfg.group_places / cfg.group_rows))
    return 1 << (most - 1).bit_length()


def describe(the_plan: Plan) -> str:
    """Writes a plan as a table of lines `name  value`, for a terminal."""
    memory = the_plan.memory
    rounds = the_plan.sampling_rounds
    rows = [
        ("parameters", f"{the_plan.num_params:,}"),
        *([("trained", f"{the_plan.num_trained:,}")] if memory.frozen else []),
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
        ("memory", f"about {size_text(memory.peak)} per device (estimate), of which"),
        *(
            (f"  {field.name.replace('_', ' ')}", size_text(getattr(memory, field.name)))
            for field in dataclasses.fields(memory)
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _device_params(
    mesh_sizes: Mapping[str, int], axes: architecture.AxesTree, lengths: Mapping[str, int]
) -> int:
    """Number of weights that one device stores, by the rules that split them; without mesh: all."""

    def count(tree: architecture.AxesTree) -> int:
        total = 0
        for leaf in tree.values():
            if isinstance(leaf, dict):
                total += count(leaf)
                continue
            size = math.prod(lengths[name] for name in leaf)
            for name in leaf:
                parts = mesh_sizes.get(axis, 1) if (axis := LOGICAL_TO_MESH[name]) else 1
                # A dim that its axis does not divide is stored whole.
                size //= parts if lengths[name] % parts == 0 else 1
            total += size
        return total

    return count(axes)


def _frozen(cfg: Config, arch: Architecture, mesh_sizes: Mapping[str, int]) -> int:
    """Bytes on one device of the weights that adapters stand beside."""
    if not cfg.model.lora.rank:
        return 0
    table, lengths = logical_axes(arch), architecture.axis_sizes(arch)
    width, bits = WIDTH_BYTES[cfg.model.dtype], cfg.model.lora.quantize
    of_all = _device_params(mesh_sizes, table, lengths) * width
    if bits == "none":
        return of_all
    matrices = {name: axes for name, axes in table["layers"].items() if name in INPUT_DIMS}
    of_matrices = _device_params(mesh_sizes, matrices, lengths)
    return of_all - of_matrices * width + math.ceil(of_matrices * _QUANTIZED_BYTES[bits])


def _device_critic(cfg: Config, arch: Architecture, mesh_sizes: Mapping[str, int]) -> int:
    """Weights of the critic on one device: its vector is split as the policy's last norm."""
    if "values" not in needs(cfg.method):
        return 0
    axes = {"weight": logical_axes(arch)["final_norm"]}
    return _device_params(mesh_sizes, axes, architecture.axis_sizes(arch)) + 1


def device_slots(cfg: Config, parts: int) -> tuple[int, int]:
    """Prompts whose keys a device holds while sampling, and completions of each in the making.

    Args:
      cfg: a checked config.
      parts: devices over whose data axes prompts are split.
    """
    group = cfg.group_drawn * cfg.plan.groups
    slots, lanes = layout(cfg.data.num_prompts_per_step, group, cfg.rollout.slots, parts)
    return lanes, slots


def token_kv(cfg: Config, arch: Architecture) -> int:
    """Bytes of the keys and values of one token in all layers."""
    head_bytes = arch.head_width * WIDTH_BYTES[cfg.model.dtype]
    if cfg.rollout.kv == "int8":
        head_bytes = arch.head_width + FLOAT32_BYTES  # and a scale
    return 2 * arch.num_layers * arch.num_kv_heads * head_bytes


def _memory(
    cfg: Config,
    arch: Architecture,
    mesh_sizes: Mapping[str, int],
    *,
    slots: tuple[int, int],
    micro: int,
    microbatches: int,
    platform: str,
) -> Memory:
    weights = _device_params(mesh_sizes, *trained_axes(cfg, arch))
    frozen, critic = _frozen(cfg, arch, mesh_sizes), _device_critic(cfg, arch, mesh_sizes)
    gathered = {"fsdp": 1} if cfg.rollout.gather_weights else {}
    lengths = architecture.axis_sizes(arch)
    drawing = _device_params({**mesh_sizes, **gathered}, logical_axes(arch), lengths)
    held = WIDTH_BYTES[cfg.model.param_dtype]
    lanes, of_lane = slots
    samples = cfg.method.source == "policy"
    chunk = cfg.rollout.chunk_tokens
    cached_tokens = lanes * (
        bucket(cfg.data.max_prompt_tokens)
        + of_lane * bucket(cfg.rollout.max_completion_tokens, chunk)
    )
    learned_tokens = micro * cfg.rollout.max_completion_tokens
    logit_rows = min(chunk_tokens(cfg.optim.logp_chunk_tokens, arch.vocab_size), learned_tokens)
    return Memory(
        params=weights * held,
        frozen=frozen,
        optimizer=2 * weights * held,
        reference=weights * held if "ref_logp" in needs(cfg.method) and not frozen else 0,
        roles=3 * weights * held * len(cfg.plan.roles),
        critic=3 * critic * FLOAT32_BYTES,
        gradients=weights * (FLOAT32_BYTES + (held if microbatches > 1 else 0))
        + critic * FLOAT32_BYTES * (2 if microbatches > 1 else 1),
        activations=_activations(cfg, arch, mesh_sizes, micro, platform),
        logits_chunk=2 * logit_rows * arch.vocab_size * FLOAT32_BYTES,
        rollout_weights=_rollout_weights(cfg, drawing, mesh_sizes["fsdp"]) if samples else 0,
        kv_cache=cached_tokens * token_kv(cfg, arch) // mesh_sizes["tensor"] if samples else 0,
        sampler_logits=3 * lanes * of_lane * arch.vocab_size * FLOAT32_BYTES if samples else 0,
    )


def _rollout_weights(cfg: Config, drawing: int, fsdp: int) -> int:
    """Bytes of the copy of the weights that samples, of so many numbers on a device."""
    if cfg.rollout.weights == "int8":
        return drawing
    differ = cfg.model.dtype != cfg.model.param_dtype
    gathered = cfg.rollout.gather_weights and fsdp > 1
    return drawing * WIDTH_BYTES[cfg.model.dtype] if differ or gathered else 0


def _activations(
    cfg: Config, arch: Architecture, mesh_sizes: Mapping[str, int], micro: int, platform: str
) -> int:
    """Bytes that the backward pass of `micro` completions and their prompts keeps.

    A layer keeps for each token its input (D); with remat `dots` also the outputs of the matmuls
    (2D, (H + 2K)E, 2F); with remat `none` also what lies between them (2D, HE, F), and the
    attention scores and probabilities in float32, unless a kernel does without them. With remat,
    those of one layer exist at a time. Heads and feed-forward widths are split over the axis
    `tensor`; a layer of experts has rows of its own (`_expert_rows`).
    """
    limit, prompt = cfg.rollout.max_completion_tokens, cfg.data.max_prompt_tokens
    prompts = math.ceil(micro / cfg.group_rows)
    tensor = mesh_sizes["tensor"]
    heads_width = arch.num_heads * arch.head_width // tensor
    kv_width = 2 * arch.num_kv_heads * arch.head_width // tensor
    inputs, ffn_width = arch.d_model, 0 if arch.num_experts else arch.ffn_width // tensor
    dots = 2 * arch.d_model + heads_width + kv_width + 2 * ffn_width
    between = 2 * arch.d_model + heads_width + ffn_width
    kept = {"full": inputs, "dots": inputs + dots, "none": inputs + dots + between}
    one_layer = {"full": dots + between, "dots": between, "none": 0}
    remat = cfg.model.remat
    values = kept[remat] * arch.num_layers + one_layer[remat]
    tokens = micro * limit + prompts * prompt
    pairs = micro * limit * (prompt + limit) + prompts * prompt * prompt
    scores = (
        2 * arch.num_heads // tensor * pairs * FLOAT32_BYTES if _scores(cfg, arch, platform) else 0
    )
    kept_layers = arch.num_layers if remat == "none" else 1
    width = WIDTH_BYTES[cfg.model.dtype]
    reads = "values" in needs(cfg.method) and width != FLOAT32_BYTES
    states = micro * limit * arch.d_model * FLOAT32_BYTES if reads else 0
    experts = _expert_rows(arch, tokens * mesh_sizes["expert"], kept_layers) * width
    return tokens * values * width + experts + scores * kept_layers + states


def _scores(cfg: Config, arch: Architecture, platform: str) -> bool:
    """Whether attention keeps a number for every pair of tokens."""
    given = {"platform": platform, "dtype": cfg.model.dtype, "head_width": arch.head_width}
    wanted = cfg.model.attention
    return wanted == "xla" or (wanted == "auto" and choose(wanted, **given) == "xla")


def _expert_rows(arch: Architecture, tokens: int, kept_layers: int) -> int:
    """Numbers that layers of experts keep: a row for each token and expert, in (D), out (D), 3F.

    Where there are more rows than are sorted at once, a part of one layer exists at a time.

    Args:
      arch: the model.
      tokens: those of all devices of an expert axis.
      kept_layers: layers whose rows the backward pass keeps.
    """
    rows, of_row = tokens * arch.experts_per_token, 2 * arch.d_model + 3 * arch.expert_width
    return MOST_ROWS * of_row if rows > MOST_ROWS else kept_layers * rows * of_row


def size_text(count: int) -> str:
    """Bytes as a terminal shows them, such as `1.5 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
