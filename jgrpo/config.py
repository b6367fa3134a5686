"""Every setting of a run, as frozen dataclasses: one section per stage, one docstring per field.

The string under a field is its reference text (`docs/config.md` is generated from it). Ranges are
annotations, so that the loader (`config_io.py`) reports every violation of a file at once.
Nothing here reads a file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, MinLen

from jgrpo.algo.methods import METHODS, Method

Scalar: TypeAlias = bool | int | float | str
Options: TypeAlias = Mapping[str, Scalar]
PositiveInt: TypeAlias = Annotated[int, Ge(1)]
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
Fraction: TypeAlias = Annotated[float, Ge(0.0), Le(1.0)]


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
    """Precision of the master weights that the optimizer updates."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, every layer, or all but the matmul outputs."""


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
    shuffle: bool = True
    """Draw prompts in a random order that is new in each epoch, instead of the file's order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled."""

    group_size: PositiveInt = 8
    """Completions per prompt, compared with each other."""
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
    """Decode steps per compiled call; the cache grows, and early exit is checked, between calls."""


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
class OptimConfig:
    """How gradients become updates."""

    lr: Annotated[float, Ge(0.0)] = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: nothing, or a decay over the remaining updates of the run."""
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
    """Completions a device holds activations of at once; 0: all. Saves memory, changes nothing."""
    logp_chunk_tokens: PositiveInt = 4096
    """Tokens whose logits exist at once in the LM head."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    method: Method = METHODS["grpo"]
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    divergence: DivergenceConfig = dataclasses.field(default_factory=DivergenceConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    @property
    def group_rows(self) -> int:
        """Completions of a prompt that are trained on: the sampled ones, and a worked solution."""
        return self.rollout.group_size + (self.method.source == "both")
