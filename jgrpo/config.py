"""Every setting of a run, as frozen dataclasses: one section per stage, one docstring per field.

The string under a field is its reference text (`docs/config.md` is generated from it). Ranges are
annotations, so that the loader (`config_io.py`) reports every violation of a file at once.
Nothing here reads a file.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, MinLen

from jgrpo.algo.methods import METHODS, Method
from jgrpo.algo.plans import plan
from jgrpo.algo.rounds import Plan
from jgrpo.algo.slots import needs
from jgrpo.config_context import ContextConfig

Scalar: TypeAlias = bool | int | float | str
Options: TypeAlias = Mapping[str, Scalar]
PositiveInt: TypeAlias = Annotated[int, Ge(1)]
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
Fraction: TypeAlias = Annotated[float, Ge(0.0), Le(1.0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685), which are then all that is trained and saved."""

    rank: NonNegativeInt = 0
    """Rank of every adapter; 0: there are none, and all weights are trained."""
    alpha: Annotated[float, Gt(0.0)] = 32.0
    """Adapters count `alpha` / `rank` times."""
    targets: str = ".*(q|k|v|o|gate|up|down)_proj"
    """Regular expression for the whole names of the matrices that have one, as in PEFT."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Frozen matrices: as they are, int8 by output, nf4 in blocks of 64 (QLoRA; extra `lora`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights are trained, and in which precision."""

    path: str
    """`tiny` (the embedded model), a Hugging Face directory or id, or a `.gguf` file."""
    init: Literal["weights", "random"] = "weights"
    """`random` takes only architecture and tokenizer from `path`; weights come from `run.seed`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations and matmuls; log-probs, losses and statistics are always float32."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the master weights that the optimizer updates; frozen ones are in `dtype`."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, every layer, or all but the matmul outputs."""
    preference: str = ""
    """Run folder of `ws_preference` whose preference model rewards the steps of completions."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """Kernel of prompts and training: plain XLA, TPU's or GPU's own; `auto`: that where it can."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """Adapters that are trained in place of the weights."""
    router_aux_coef: Annotated[float, Ge(0.0)] = 0.0
    """Coefficient of the loss that balances the load of experts, over the whole batch."""
    router_z_coef: Annotated[float, Ge(0.0)] = 0.0
    """Coefficient of the squared log-sum-exp of the logits of routers."""
    routing_replay: Literal["off", "measure", "r2", "r3"] = "off"
    """Train with the experts that the learner (`r2`) or the sampler (`r3`) took in the rollout.
    `measure`: with those that the router picks, and say how many differ from the learner's then."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which fields of a data file hold what. Every other field reaches the rewards by its name."""

    prompt: str = "prompt"
    """Field with the prompt: a string, or a list of messages with `role` and `content`."""
    answer: str = "answer"
    """Field with the reference answer; the field may be absent from the data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from and how many a step asks."""

    task: str
    """A named task (`jgrpo data` lists them), or `jsonl`, `parquet` or `hf` with `data.path`."""
    path: str = ""
    """File, directory or Hugging Face dataset id, for tasks that read files."""
    heldout_path: str = ""
    """File with the held-out prompts; empty: a fixed tenth of `path`, chosen by content hash."""
    columns: ColumnsConfig = dataclasses.field(default_factory=ColumnsConfig)
    """Names of the fields in the data files."""
    options: Options = dataclasses.field(default_factory=dict)
    """Settings of the named task, such as `num_terms: 3`; unknown ones are refused."""
    num_prompts_per_step: PositiveInt = 32
    """Prompts (groups) a step trains on."""
    max_prompt_tokens: PositiveInt = 256
    """Longest prompt in tokens; longer ones are an error, never cut."""
    system_prompt: str = ""
    """Text of a system message put before every prompt (this makes plain prompts a chat)."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Apply the tokenizer's chat template: to message lists only, always, or never."""
    skills: str = ""
    """JSON file with the skills that a library begins with (`arise`); empty: none."""
    shuffle: bool = True
    """Draw prompts in a random order that is new in each epoch, instead of the file's order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled."""

    group_size: PositiveInt = 8
    """Completions per prompt, compared with each other; the mean, if the method allocates them."""
    max_completion_tokens: PositiveInt = 256
    """Longest completion in tokens, EOS included."""
    temperature: Annotated[float, Ge(0.0)] = 1.0
    """Sampling temperature; 0 is greedy. Log-probs are at this temperature (at 1 if greedy)."""
    top_k: NonNegativeInt = 0
    """Draw from the k most likely tokens only; 0 turns it off."""
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    """Draw from the smallest set of tokens whose probability reaches this; 1 turns it off."""
    min_p: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """Draw from tokens at least this likely relative to the most likely one; 0 turns it off."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they stay part of it."""
    segment_mark: Annotated[str, MinLen(1)] = "\n"
    """Text that ends a segment of a completion, for methods that compare segments."""
    stratum_mark: str = ""
    """Text whose count in a completion is its stratum, for methods that compare within strata."""
    chunk_tokens: PositiveInt = 16
    """Decode steps per compiled call; caches grow, and stop strings are checked, between calls."""
    slots: NonNegativeInt = 0
    """Completions decoded at once; when one ends, its slot takes the next. 0: all of the step."""
    lag: Annotated[int, Ge(0), Le(1)] = 0
    """1: sample the next step, with the weights of before, while this one is learned from."""
    weights: Literal["model", "int8"] = "model"
    """Matrices while sampling: `model.dtype`, or int8 with a scale per output, anew each step."""
    kv: Literal["model", "int8"] = "model"
    """Keys and values while sampling: in `model.dtype`, or int8 with a scale per token and head."""
    gather_weights: bool = True
    """Put the weights that `mesh.fsdp` splits together once a rollout; false: for every token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardFunctionConfig:
    """One named reward."""

    name: str
    """A built-in reward (`jgrpo data --rewards` lists them) or `package.module:function`."""
    weight: float = 1.0
    """Factor in the sum of rewards."""
    options: Options = dataclasses.field(default_factory=dict)
    """Further keyword arguments of the function."""
    per: Literal["completion", "group", "step"] = "completion"
    """How many completions one call of an isolated reward gets; `group` lets it compare them."""
    on_failure: Literal["mask", "value", "group"] = "mask"
    """If it fails: leave the completion out of training, take a value, leave its group out."""
    failure_value: float = 0.0
    """What a completion gets with `on_failure: value`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """How completions are scored."""

    functions: tuple[RewardFunctionConfig, ...] = ()
    """Rewards, summed with their weights; empty: the task's own."""
    deadline_s: Annotated[float, Gt(0.0)] = 10.0
    """Seconds that an isolated reward may spend on one completion; then it is killed."""
    workers: PositiveInt = 2
    """Worker processes, shared by all rewards that run isolated."""
    memory_mb: NonNegativeInt = 4096
    """MiB that a worker may use beyond what its imports took (Linux); 0: no limit."""
    max_failure_rate: Fraction = 0.2
    """Share of failures among its last 200 completions above which a reward stops the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallsConfig:
    """How a main agent calls a sub-agent (`m_grpo`), and who judges the answers."""

    main: str = (
        "{prompt}\n\nYou have a helper who sees nothing but what you tell it. To ask it, write "
        "<call>...</call>, once for each question, and end there. Its answers follow; then finish."
        "\n\n"
    )
    """What a main agent reads: a prompt, and how to call."""
    form: str = "<call>(.*?)</call>"
    """Regular expression for a call; its first group is what the sub-agent is asked."""
    sub: str = "{call}\n\nEnd with the answer, in this form: <answer>...</answer>\n\n"
    """What a sub-agent reads: a call; `{prompt}` is the prompt of whoever calls."""
    answer_form: str = "<answer>(.*?)</answer>"
    """Regular expression for what a sub-agent writes; its first group is the answer."""
    answered: str = "\n<answer>{answer}</answer>\n"
    """Each answer (and `{call}`) behind the turn of a main agent that has called."""
    experts: tuple[RewardFunctionConfig, ...] = ()
    """Rewards, summed with their weights, of answers; they get the call as prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How gradients become updates."""

    lr: Annotated[float, Ge(0.0)] = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: nothing, or a decay over the remaining updates of the run."""
    role_lr: Annotated[float, Ge(0.0)] = 1e-6
    """Peak rate, on the same schedule, of a policy that a plan trains beside the first (`hill`)."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from zero."""
    final_lr_ratio: Fraction = 0.0
    """Learning rate at the end of a decay, relative to `lr`."""
    beta1: Fraction = 0.9
    """AdamW's decay of the first moment."""
    beta2: Fraction = 0.99
    """AdamW's decay of the second moment."""
    eps: Annotated[float, Gt(0.0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Ge(0.0)] = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    clip_norm: Annotated[float, Gt(0.0)] = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    epochs_per_step: PositiveInt = 1
    """Passes over the rollouts of a step."""
    minibatches: PositiveInt = 1
    """Equal parts of the rollouts, by prompt; each is one update."""
    microbatch_completions: NonNegativeInt = 0
    """Completions (packed: as many positions) a device computes at once, to save memory; 0: all."""
    logp_chunk_tokens: NonNegativeInt = 0
    """Tokens of a device whose logits exist at once; 0: as many as make 512 MiB in float32."""
    packing: bool = True
    """Put the completions of a group behind each other in rows where that saves a fifth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """What happens when updates are not finite; each such update is skipped and counted."""

    max_skipped_in_row: PositiveInt = 5
    """Steps in a row with a skipped update after which the run counts as diverged."""
    then: Literal["stop", "roll_back"] = "stop"
    """An error, or the newest checkpoint again, with the prompts that come next."""
    max_roll_backs: PositiveInt = 3
    """Times that a run rolls back before it stops."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are arranged. The product must equal the number of devices."""

    replica: Annotated[int, Ge(-1)] = -1
    """Data-parallel copies; -1: all devices that the other axes leave."""
    fsdp: PositiveInt = 1
    """Devices over which weights, optimizer state and batch are split."""
    expert: PositiveInt = 1
    """Devices over which the experts of a model, and the batch, are split."""
    tensor: PositiveInt = 1
    """Devices over which heads, feed-forward width and an untied LM head's vocabulary are split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How held-out prompts are evaluated."""

    every: NonNegativeInt = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    num_prompts: PositiveInt = 256
    """Held-out prompts, the same ones each time; fewer if the task has fewer."""
    samples_per_prompt: NonNegativeInt = 0
    """Completions sampled per prompt for pass@k and maj@k; 0: greedy only."""
    temperature: Annotated[float, Gt(0.0)] = 1.0
    """Temperature of those samples."""
    batch_prompts: PositiveInt = 64
    """Prompts decoded at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept for a restart."""

    every: NonNegativeInt = 0
    """Steps between checkpoints; 0: only after the last step."""
    keep: PositiveInt = 2
    """Newest checkpoints that stay on disk."""
    keep_best: NonNegativeInt = 0
    """Checkpoints that stay besides because their evaluation was best; needs `eval.every`."""
    best_metric: str = "eval/greedy_accuracy"
    """The metric of the evaluation that `keep_best` goes by; higher is better."""
    deadline_s: Annotated[float, Gt(0.0)] = 1800.0
    """Seconds that a save may take before the run stops with an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes besides metrics.jsonl."""

    samples_every: NonNegativeInt = 1
    """Steps between sample files; 0: none."""
    entropy: bool = True
    """Measure the policy's mean entropy; off spares the learner a sum over the vocabulary."""
    tensorboard: bool = False
    """Write TensorBoard event files under the run folder."""
    wandb_project: str = ""
    """Weights & Biases project; empty: off. Needs the `wandb` extra."""
    trackio_project: str = ""
    """trackio project; empty: off. Needs the `trackio` extra."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where, how long and from which seed."""

    dir: str
    """Run folder. The same command on the same folder continues the run."""
    steps: PositiveInt
    """Steps in all (one rollout phase and its updates each)."""
    seed: NonNegativeInt = 0
    """Root of all randomness of the run: sampling, prompt order, fresh weights."""
    grace_s: Annotated[float, Gt(0.0)] = 25.0
    """Seconds between SIGTERM (or Ctrl-C) and the end of the process; it saves in that time."""
    host_timeout_s: Annotated[float, Gt(0.0)] = 60.0
    """Seconds without a sign of life of another host after which this one ends, naming it."""
    watchdog_s: Annotated[float, Ge(0.0)] = 3600.0
    """Seconds in which a step, an evaluation or a save must end, or the run ends; 0: any."""
    compile_cache: Literal["auto", "on", "off"] = "auto"
    """Keep compiled programs in the run folder; auto: not on CPUs, where XLA may crash writing."""
    compile_ahead: Literal["auto", "on", "off"] = "auto"
    """Compile sampling and updates side by side before the first step; auto: not on CPUs."""
    profile: str = ""
    """Steps to trace, such as `steps:5-7` (numbered as in metrics.jsonl); empty: none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    method: Method = METHODS["grpo"]
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    context: ContextConfig = dataclasses.field(default_factory=ContextConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    calls: CallsConfig = dataclasses.field(default_factory=CallsConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    divergence: DivergenceConfig = dataclasses.field(default_factory=DivergenceConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    @property
    def group_drawn(self) -> int:
        """Completions sampled of a prompt, on average: one more if the method drops its pivot."""
        return self.rollout.group_size + ("pivot" in needs(self.method))

    @functools.cached_property
    def plan(self) -> Plan:
        """What a step asks of its prompts."""
        return plan(self.method, self.group_drawn, self.data.num_prompts_per_step)

    @property
    def group_rows(self) -> int:
        """Completions of a prompt in a step, on average: the sampled ones, and a solution."""
        return self.plan.width + (self.method.source == "both")

    @property
    def group_places(self) -> int:
        """Most completions of a prompt that a step trains on."""
        return self.plan.kept + (self.method.source == "both")

    @property
    def group_pool(self) -> int:
        """Most completions of a prompt that a step scores."""
        return self.plan.places + (self.method.source == "both")

    @property
    def inexact_sampler(self) -> bool:
        """Whether sampler and learner round differently: the ratio is then the learner's own."""
        return self.model.dtype != "float32" or self.quantized_rollouts

    @property
    def quantized_rollouts(self) -> bool:
        """Whether the sampler computes in 8-bit integers, and so draws from another law."""
        return "int8" in (self.rollout.weights, self.rollout.kv)
