"""The tasks by name: where prompts come from and which rewards check their completions.

A task joins examples (`chain.py`, `arithmetic.py`, `countdown.py`, `sources.py`) with its default
rewards. Options are the fields of one frozen dataclass per task.
"""

import dataclasses
from collections.abc import Callable, Mapping

from jgrpo.config import ColumnsConfig, DataConfig, RewardFunctionConfig
from jgrpo.config_schema import suggestion
from jgrpo.data import arithmetic, chain, code_tasks, countdown, mutants, sources
from jgrpo.data.draws import Family, Generated, Source, heldout
from jgrpo.data.options import read_options
from jgrpo.data.rows import BadRow, read_dataset, read_jsonl, read_parquet
from jgrpo.rewards.text import first_number, last_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts with the way to check them.

    Attributes:
      name: as in `data.task`.
      train: prompts to learn from.
      heldout: prompts to evaluate on; none of them is in `train`.
      rewards: what scores a completion if the config names no rewards.
      format_pattern: regular expression that the whole of a well-formed completion matches, or
        None if the task has no form.
      read_answer: reads the answer of a completion in canonical form, for the vote of maj@k; None
        where answers are not compared as text.
    """

    name: str
    train: Source
    heldout: Source
    rewards: tuple[RewardFunctionConfig, ...] = ()
    format_pattern: str | None = None
    read_answer: Callable[[str], str | None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Tasks that have no settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Settings of the task `hf`.

    Attributes:
      split: the split to learn from.
      heldout_split: the split to evaluate on; empty: a fixed tenth of `split`.
      subset: configuration of the dataset; empty: its default.
    """

    split: str = "train"
    heldout_split: str = ""
    subset: str = ""


def load_task(cfg: DataConfig) -> Task:
    """Loads the task that a config names.

    Raises:
      ValueError: naming the key, for an unknown task or option, or a setting that the task does
        not read; naming file and line, for data that cannot be used.
      FileNotFoundError: if a file of the task is missing.
      ImportError: naming the extra, if the task needs a package that is not installed.
    """
    if cfg.task not in TASKS:
        hint = suggestion(cfg.task, TASKS)
        raise ValueError(f"data.task: must be one of {', '.join(TASKS)}, got {cfg.task!r}{hint}")
    return TASKS[cfg.task](cfg)


def _reads_no_file(cfg: DataConfig) -> None:
    _fixed_columns(cfg)
    for name, value in (("path", cfg.path), ("heldout_path", cfg.heldout_path)):
        if value:
            raise ValueError(
                f"data.{name}: task {cfg.task!r} makes its own problems and reads no file; "
                f"remove {value!r}"
            )


def _fixed_columns(cfg: DataConfig) -> None:
    if cfg.columns != ColumnsConfig():
        raise ValueError(f"data.columns: has no effect on task {cfg.task!r}; remove it")


def _needs_path(cfg: DataConfig) -> None:
    if not cfg.path:
        raise ValueError(f"data.path: must name the data for task {cfg.task!r}, got ''")


def _generated(cfg: DataConfig, family: Family, reward: RewardFunctionConfig, form: str) -> Task:
    return Task(
        name=cfg.task,
        train=Generated(family),
        heldout=heldout(family),
        rewards=(reward,),
        format_pattern=form,
    )


def _chain(cfg: DataConfig) -> Task:
    """Sums and differences of a few numbers, worked out a step at a time (generated)."""
    return _chained(cfg, chain.Options)


def _overthink(cfg: DataConfig) -> Task:
    """As chain, with worked solutions that check and repeat themselves (generated)."""
    return _chained(cfg, chain.OverthinkOptions)


def _chained(cfg: DataConfig, options: type[chain.Options]) -> Task:
    _reads_no_file(cfg)
    family = chain.family(read_options(options, cfg))
    task = _generated(cfg, family, RewardFunctionConfig(name="tagged_number"), chain.PATTERN)
    return dataclasses.replace(task, read_answer=last_number)


def _countdown(cfg: DataConfig) -> Task:
    """A formula that reaches a target from given numbers (generated)."""
    _reads_no_file(cfg)
    options = read_options(countdown.Options, cfg)
    plain = options.style == "plain"
    reward = RewardFunctionConfig(
        name="countdown", options={"within": "hash" if plain else "answer_tags"}
    )
    form = countdown.PLAIN_PATTERN if plain else countdown.CHAT_PATTERN
    return _generated(cfg, countdown.family(options), reward, form)


def _mutants(cfg: DataConfig) -> Task:
    """Tests that tell a design from its mutant, in trees of mutants (generated)."""
    _reads_no_file(cfg)
    options = read_options(mutants.Options, cfg)
    return Task(
        name=cfg.task,
        train=mutants.Trees(options),
        heldout=mutants.heldout(options),
        rewards=(RewardFunctionConfig(name="stimulus"),),
        format_pattern=mutants.PATTERN,
    )


def _gcd(cfg: DataConfig) -> Task:
    """Greatest common divisors, few-shot or worked out by Euclid's algorithm (generated)."""
    _reads_no_file(cfg)
    options = read_options(arithmetic.GcdOptions, cfg)
    return _pairs(cfg, options.style, arithmetic.gcd(options))


def _mod(cfg: DataConfig) -> Task:
    """Remainders of a division (generated)."""
    _reads_no_file(cfg)
    options = read_options(arithmetic.ModOptions, cfg)
    return _pairs(cfg, options.style, arithmetic.mod(options))


def _pairs(cfg: DataConfig, style: arithmetic.Style, split: arithmetic.Split) -> Task:
    plain = style == "plain"
    # A model that does not stop at the newline goes on with further lines of the same kind, so
    # the first number is its answer.
    first = RewardFunctionConfig(name="number_match", options={"where": "first"})
    return Task(
        name=cfg.task,
        train=split[0],
        heldout=split[1],
        rewards=(RewardFunctionConfig(name="tagged_number") if plain else first,),
        format_pattern=arithmetic.PLAIN_PATTERN if plain else arithmetic.BARE_PATTERN,
        read_answer=last_number if plain else first_number,
    )


def _addition(cfg: DataConfig) -> Task:
    """Additions of small numbers asked in a chat (generated)."""
    _reads_no_file(cfg)
    train, held = arithmetic.addition(read_options(arithmetic.AdditionOptions, cfg))
    return Task(
        name=cfg.task,
        train=train,
        heldout=held,
        rewards=(RewardFunctionConfig(name="number_match"),),
        format_pattern=arithmetic.BARE_PATTERN,
        read_answer=last_number,
    )


def _gsm8k(cfg: DataConfig) -> Task:
    """Grade-school word problems, from the files of GSM8K."""
    _needs_path(cfg)
    _fixed_columns(cfg)
    read_options(NoOptions, cfg)
    task = _from_files(cfg, _gsm8k_rows)
    return dataclasses.replace(_GSM8K, train=task.train, heldout=task.heldout)


def _humaneval(cfg: DataConfig) -> Task:
    """Functions to complete in Python, from the file of HumanEval (it has no training split)."""
    _needs_path(cfg)
    _fixed_columns(cfg)
    return dataclasses.replace(_from_files(cfg, _humaneval_rows), rewards=_CODE_TESTS)


def _mbpp(cfg: DataConfig) -> Task:
    """Short programs to write in Python, from the file of MBPP in its official splits."""
    _needs_path(cfg)
    _fixed_columns(cfg)
    options = read_options(code_tasks.MbppOptions, cfg)
    _names_no_heldout_file(cfg)
    rows = sources.collect(_mbpp_rows(cfg, cfg.path))
    train, held = code_tasks.split_mbpp(rows, options)
    if not train or not held:
        message = "must hold all of MBPP (the splits go by its task_id)"
        raise ValueError(f"data.path: {message}, got {len(rows)} rows of {cfg.path!r}")
    return Task(name=cfg.task, train=train, heldout=held, rewards=_CODE_TESTS)


def _jsonl(cfg: DataConfig) -> Task:
    """Your own prompts, one JSON object a line."""
    _needs_path(cfg)
    read_options(NoOptions, cfg)
    return _from_files(cfg, _jsonl_rows)


def _parquet(cfg: DataConfig) -> Task:
    """Your own prompts in a Parquet file."""
    _needs_path(cfg)
    read_options(NoOptions, cfg)
    return _from_files(cfg, _parquet_rows)


def _from_files(cfg: DataConfig, read: Callable[[DataConfig, str], sources.Parsed]) -> Task:
    rows = sources.collect(read(cfg, cfg.path))
    if not rows:
        raise ValueError(f"data.path: {cfg.path!r} has no rows")
    if not cfg.heldout_path:
        train, held = sources.split(rows, cfg.path)
        return Task(name=cfg.task, train=train, heldout=held)
    held = sources.collect(read(cfg, cfg.heldout_path))
    if not held:
        raise ValueError(f"data.heldout_path: {cfg.heldout_path!r} has no rows")
    return Task(name=cfg.task, train=rows, heldout=held)


def _hf(cfg: DataConfig) -> Task:
    """A dataset of the Hugging Face hub, or one saved to disk by `datasets`."""
    _needs_path(cfg)
    options = read_options(DatasetOptions, cfg)
    _names_no_heldout_file(cfg)
    train = sources.collect(_hf_rows(cfg, options.split))
    if not train:
        raise ValueError(f"data.path: split {options.split!r} of {cfg.path!r} has no rows")
    if not options.heldout_split:
        train, held = sources.split(train, cfg.path)
        return Task(name=cfg.task, train=train, heldout=held)
    held = sources.collect(_hf_rows(cfg, options.heldout_split))
    if not held:
        message = f"split {options.heldout_split!r} of {cfg.path!r} has no rows"
        raise ValueError(f"data.options.heldout_split: {message}")
    return Task(name=cfg.task, train=train, heldout=held)


def _names_no_heldout_file(cfg: DataConfig) -> None:
    if cfg.heldout_path:
        message = f"has no effect on task {cfg.task!r}; name a split in data.options.heldout_split"
        raise ValueError(f"data.heldout_path: {message}")


def _gsm8k_rows(cfg: DataConfig, path: str) -> sources.Parsed:
    return sources.parse_gsm8k(read_jsonl(path))


def _humaneval_rows(cfg: DataConfig, path: str) -> sources.Parsed:
    options = read_options(code_tasks.HumanEvalOptions, cfg)
    return code_tasks.parse_humaneval(read_jsonl(path), options)


def _mbpp_rows(cfg: DataConfig, path: str) -> sources.Parsed:
    return code_tasks.parse_mbpp(read_jsonl(path), read_options(code_tasks.MbppOptions, cfg))


def _jsonl_rows(cfg: DataConfig, path: str) -> sources.Parsed:
    return sources.parse(read_jsonl(path), cfg.columns)


def _parquet_rows(cfg: DataConfig, path: str) -> sources.Parsed:
    return sources.parse(read_parquet(path), cfg.columns)


def _hf_rows(cfg: DataConfig, split: str) -> sources.Parsed:
    subset = read_options(DatasetOptions, cfg).subset
    return sources.parse(read_dataset(cfg.path, split, subset), cfg.columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParsedTask:
    """A task whose rows are read one by one, bad ones included.

    Attributes:
      task: the task without its rows.
      train: rows to learn from.
      heldout: held-out rows; None where `sources.split` takes them from the others.
    """

    task: Task
    train: sources.Parsed
    heldout: sources.Parsed | None


def parse_task(cfg: DataConfig) -> ParsedTask | None:
    """Opens the data of a config for a look at every row.

    Returns:
      The rows; None for a task that does not read them one by one.
    """
    if cfg.task == "mbpp":
        return _parsed_mbpp(cfg)
    if cfg.task not in _ROWS:
        return None
    _needs_path(cfg)
    train, held = cfg.path, cfg.heldout_path
    if cfg.task == "hf":
        options = read_options(DatasetOptions, cfg)
        train, held = options.split, options.heldout_split
    read = _ROWS[cfg.task]
    return ParsedTask(
        task=_FRAMES.get(cfg.task, Task(name=cfg.task, train=(), heldout=())),
        train=read(cfg, train),
        heldout=read(cfg, held) if held else None,
    )


def _parsed_mbpp(cfg: DataConfig) -> ParsedTask:
    """Both splits lie in one file; its bad rows are told with the first."""
    _needs_path(cfg)
    _names_no_heldout_file(cfg)
    options = read_options(code_tasks.MbppOptions, cfg)

    def part(split: str, *, bad: bool) -> sources.Parsed:
        for place, item in _mbpp_rows(cfg, cfg.path):
            if bad if isinstance(item, BadRow) else code_tasks.in_split(item, split):
                yield place, item

    return ParsedTask(
        task=_FRAMES["mbpp"],
        train=part("train", bad=True),
        heldout=part(options.heldout_split, bad=False),
    )


_GSM8K = Task(
    name="gsm8k",
    train=(),
    heldout=(),
    rewards=(
        RewardFunctionConfig(
            name="tagged_number", options={"marker": "####", "trailing": "ignore"}
        ),
    ),
    format_pattern=sources.GSM8K_PATTERN,
    read_answer=last_number,
)
_CODE_TESTS = (RewardFunctionConfig(name="code_tests"),)
_FRAMES: Mapping[str, Task] = {
    "gsm8k": _GSM8K,
    "humaneval": Task(name="humaneval", train=(), heldout=(), rewards=_CODE_TESTS),
    "mbpp": Task(name="mbpp", train=(), heldout=(), rewards=_CODE_TESTS),
}
"""Tasks without their rows, where they have more than a name."""
_ROWS: Mapping[str, Callable[[DataConfig, str], sources.Parsed]] = {
    "gsm8k": _gsm8k_rows,
    "humaneval": _humaneval_rows,
    "jsonl": _jsonl_rows,
    "parquet": _parquet_rows,
    "hf": _hf_rows,
}
"""How the rows of a file, or of a split, are read by the tasks that read them one by one."""


TASKS: Mapping[str, Callable[[DataConfig], Task]] = {
    "chain": _chain,
    "overthink": _overthink,
    "gcd": _gcd,
    "mod": _mod,
    "addition": _addition,
    "countdown": _countdown,
    "mutants": _mutants,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "hf": _hf,
}
"""Every task by name, as the function that makes it."""
