"""The commands: `python train.py CONFIG ...` and `jgrpo eval | generate | plan | methods | ...`.

Each reads its arguments, calls one function of the package and prints what came of it. Mistakes of
the user end in one message and exit code 2, without a traceback.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jgrpo import config_io
from jgrpo.config import Config
from jgrpo.parallel import hosts
from jgrpo.parallel.distributed import initialize
from jgrpo.rewards.calls import RewardError
from jgrpo.stopping import EXIT_CODES, Stopped
from jgrpo.types import Message
from jgrpo.watch import leave

# transformers is here for tokenizers and configs; that it finds no torch is as it should be.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_OVERRIDES = "settings as dotted keys, such as method=gspo optim.lr=1e-6"


def train_main(argv: Sequence[str] | None = None) -> int:
    """Runs `train.py`; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Trains as a config says; the same command on the same run.dir continues.",
    )
    parser.add_argument(
        "config", nargs="?", help="a YAML file, such as configs/quickstart.yaml; none with --sweep"
    )
    parser.add_argument("override", nargs="*", help=_OVERRIDES)
    parser.add_argument("--sweep", metavar="FILE", help="run every config of a sweep file")
    parser.add_argument("--index", type=int, help="of a sweep, run this one only (from 0)")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--plan", action="store_true", help="print the runs of a sweep, and stop")
    shown.add_argument("--check", action="store_true", help="validate, print the plan, and stop")
    shown.add_argument("--print", action="store_true", help="print the resolved YAML, and stop")
    parser.add_argument(
        "--devices", type=int, help="devices the plan of --check is for (default: those present)"
    )
    parser.add_argument(
        "--force", action="store_true", help="continue a run although its config has changed"
    )
    parser.set_defaults(joins=argv is None)  # called from Python, it is as its caller has made it
    args = parser.parse_intermixed_args(argv)
    if args.sweep is None and args.config is None:
        parser.error("name a config, or a sweep file with --sweep")
    if args.sweep is None and (args.plan or args.index is not None):
        parser.error("--plan and --index are for --sweep FILE")
    if args.sweep is not None and (args.check or args.print or args.force or args.devices):
        parser.error("--sweep goes with --index and --plan only")
    return leave(_guarded(_train if args.sweep is None else _sweep, args))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jgrpo` (also `python -m jgrpo`); returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="jgrpo", description="Group-relative reinforcement learning of language models in JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_run_commands(commands)
    _add_reference_commands(commands)

    # argparse does not mix options and several positionals in subcommands; settings may stand last.
    parser.set_defaults(joins=argv is None)
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown or (rest and "override" not in args):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.override = [*args.override, *rest]
    if args.command == "data" and args.config == "check":
        if not args.override:
            parser.error("data check: name a config")
        args.config, args.override, args.call = args.override[0], args.override[1:], _data_check
    return leave(_guarded(args.call, args))


def _add_run_commands(commands: Any) -> None:
    """Adds the commands about a run."""
    add = commands.add_parser("eval", help="evaluate a run or an untrained config, held out")
    _add_source(add)
    add.add_argument("--json", action="store_true", help="print the report as JSON")
    add.set_defaults(call=_eval)

    add = commands.add_parser("generate", help="sample completions")
    _add_source(add)
    add.add_argument("--prompt", help="the prompt; default: held-out prompts of the task")
    add.add_argument("-n", type=int, default=4, help="prompts to show without --prompt")
    add.add_argument("-g", type=int, default=1, help="completions per prompt")
    add.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add.set_defaults(call=_generate)

    add = commands.add_parser("export", help="write a run's weights as a Hugging Face directory")
    add.add_argument("run", help="a run folder")
    add.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
    add.add_argument("--to", required=True, help="directory to write")
    add.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    add.add_argument(
        "--max-shard-size", default="2GB", help="split weights beyond this (default: 2GB)"
    )
    add.add_argument("--adapter", action="store_true", help="its LoRA adapters alone, for PEFT")
    add.add_argument("--force", action="store_true", help="replace what lies in the directory")
    add.set_defaults(call=_export)

    add = commands.add_parser(
        "plan", help="compile a run for chips that are not there: memory, exchanges, estimate"
    )
    add.add_argument("config", help="a YAML file")
    add.add_argument("override", nargs="*", help=_OVERRIDES)
    add.add_argument(
        "--topology", required=True, help="such as v5e:2x4, v5p:2x2x4, h100:8; cpu:8 for this CPU"
    )
    add.add_argument(
        "--search", action="store_true", help="propose mesh, microbatch and remat, by estimate"
    )
    add.add_argument("--json", action="store_true", help="print as JSON")
    add.set_defaults(call=_plan)

    add = commands.add_parser("checkpoint", help="verify every byte of a run's checkpoints")
    add.add_argument("action", choices=("verify",))
    add.add_argument("run", help="a run folder")
    add.set_defaults(call=_checkpoint)


def _add_reference_commands(commands: Any) -> None:
    """Adds the commands about methods and data."""
    add = commands.add_parser("methods", help="list the methods, or describe one")
    add.add_argument("name", nargs="?", help="a method, such as gspo")
    add.add_argument("--json", action="store_true", help="print as JSON")
    add.set_defaults(call=_methods)

    add = commands.add_parser(
        "data",
        help="list tasks and rewards, or show or check a config's prompts",
        usage="jgrpo data [check] [CONFIG] [key=value ...] [--rewards] [-n N] [--json]",
    )
    add.add_argument("config", nargs="?", help="show prompts of this config's task")
    add.add_argument("override", nargs="*", help=_OVERRIDES)
    add.add_argument("--rewards", action="store_true", help="list the built-in rewards")
    add.add_argument("-n", type=int, default=4, help="prompts to show")
    add.add_argument("--json", action="store_true", help="print what `check` finds as JSON")
    add.set_defaults(call=_data)

    add = commands.add_parser(
        "dialogues", help="cut stored dialogues about programs into prompts of one turn each"
    )
    add.add_argument("config", help="whose model, chat settings and prompt limit the prompts fit")
    add.add_argument("dialogues", help="a .jsonl file of dialogues")
    add.add_argument("override", nargs="*", help=_OVERRIDES)
    add.add_argument("--to", required=True, help="the .jsonl file to write")
    add.add_argument(
        "--swapped", type=float, default=0.1, help="share with swapped outputs (default: 0.1)"
    )
    add.set_defaults(call=_dialogues)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a run folder (its newest checkpoint) or a config file")
    parser.add_argument("override", nargs="*", help=_OVERRIDES)
    parser.add_argument("--step", type=int, help="checkpoint of the run (default: the newest)")


def _guarded(call: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Calls a command; one that returns no exit code has succeeded."""
    try:
        return call(args) or 0
    except (ValueError, OSError, ImportError, FloatingPointError, RewardError) as error:
        print(f"{hosts.speaker()}error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{hosts.speaker()}{stopped}", file=sys.stderr)
        return EXIT_CODES[stopped.signal]
    except KeyboardInterrupt:
        return EXIT_CODES["SIGINT"]


def _train(args: argparse.Namespace) -> None:
    cfg = config_io.load(args.config, args.override)
    if args.print:
        print(config_io.dump(cfg), end="")
    elif args.check:
        _check(cfg, args.devices)
    else:
        from jgrpo.progress import show_result
        from jgrpo.run import train

        if args.joins:  # jax's own end of a process comes after ours, which says more
            initialize(heartbeat_s=int(2 * cfg.run.host_timeout_s + 30))
        summary = train(cfg, force=args.force)
        if hosts.is_first():
            show_result(summary, Path(cfg.run.dir), args.config)


def _sweep(args: argparse.Namespace) -> int:
    from jgrpo.sweep.runs import run_sweep

    # The first word stands where a config does otherwise.
    words = [] if args.config is None else [args.config, *args.override]
    show = "plan" if args.plan else "run"
    return run_sweep(args.sweep, words, index=args.index, show=show, joins=args.joins)


def _check(cfg: Config, devices: int | None) -> None:
    import jax

    from jgrpo.models.load import architecture
    from jgrpo.planner import describe, plan

    here = jax.default_backend()
    print(describe(plan(cfg, architecture(cfg.model.path), devices or jax.device_count(), here)))


def _eval(args: argparse.Namespace) -> None:
    from jgrpo.reopen import reopen

    if args.joins:
        initialize()
    run, params, key, _ = reopen(Path(args.source), args.override, args.step)
    with contextlib.closing(run):
        report = run.evaluator.evaluate(params, key)
    if args.json and hosts.is_first():
        print(json.dumps(report.to_json()))
    if args.json or not hosts.is_first():
        return
    table = Table(title=f"{report.num_prompts} held-out prompts of {run.cfg.data.task}")
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in report.metrics().items():
        table.add_row(name.removeprefix("eval/"), f"{value:.3f}")
    Console().print(table)


def _generate(args: argparse.Namespace) -> None:
    from jgrpo.data.chat import last_message
    from jgrpo.reopen import reopen, sample_texts

    run, params, key, _ = reopen(Path(args.source), args.override, args.step)
    task = run.collector.task
    prompts: list[Any] = (
        [args.prompt]
        if args.prompt
        else [task.heldout[i].prompt for i in range(min(args.n, len(task.heldout)))]
    )
    with contextlib.closing(run):
        groups = sample_texts(
            run, params, key, prompts, group_size=args.g, temperature=args.temperature
        )
    for prompt, group in zip(prompts, groups, strict=True):
        shown = last_message(prompt)
        for completion in group:
            print(f"{shown} -> {completion}")


def _export(args: argparse.Namespace) -> None:
    from jgrpo.export import export, parse_bytes

    try:
        max_shard_bytes = parse_bytes(args.max_shard_size)
    except ValueError as error:
        raise ValueError(f"--max-shard-size: {error}") from error
    if args.joins:
        initialize()
    hosts.on_first(
        lambda: export(
            Path(args.run),
            Path(args.to),
            step=args.step,
            dtype=args.dtype,
            max_shard_bytes=max_shard_bytes,
            adapter=args.adapter,
            force=args.force,
            say=print,
        )
    )


def _plan(args: argparse.Namespace) -> int:
    import jax

    from jgrpo.planning.command import show

    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine is not needed
    cfg = config_io.load(args.config, args.override)
    fits = show(cfg, args.topology, searches=args.search, as_json=args.json)
    return int(not fits)


def _methods(args: argparse.Namespace) -> None:
    from jgrpo.algo import METHODS, method
    from jgrpo.algo.describe import method_page, methods_table

    rows = methods_table()
    if args.name:
        method(args.name)  # an unknown name raises, saying which there are
        rows = [row for row in rows if row["name"] == args.name]
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.name:
        print(method_page(args.name))
    else:
        table = Table(title=f"{len(METHODS)} methods (jgrpo methods NAME for one page)")
        table.add_column("method", no_wrap=True)
        for header in ("differs from grpo by", "paper", "departs", "evidence"):
            table.add_column(header)
        for row in rows:
            changes = " ".join(f"{name}={value}" for name, value in row["changes"].items())
            table.add_row(row["name"], changes, row["paper"], row["departs"], row["evidence"])
        Console(width=max(Console().width, 140)).print(table)


def _data(args: argparse.Namespace) -> None:
    from jgrpo.data.tasks import TASKS, load_task
    from jgrpo.rewards.functions import REWARDS

    if args.config is None:
        functions = {name: entry.function for name, entry in REWARDS.items()}
        for name, function in (functions if args.rewards else TASKS).items():
            print(f"{name:16} {(function.__doc__ or '').strip().splitlines()[0]}")
        return
    cfg = config_io.load(args.config, args.override)
    task = load_task(cfg.data)
    print(f"{task.name}: {len(task.train)} prompts to train on, {len(task.heldout)} held out")
    for i in range(min(args.n, len(task.train))):
        example = task.train[i]
        shown = example.prompt if isinstance(example.prompt, str) else list(example.prompt)
        print(json.dumps({"prompt": shown, "answer": example.answer, "solution": example.solution}))


def _checkpoint(args: argparse.Namespace) -> int:
    from jgrpo.checkpoint import verify_all

    found = verify_all(Path(args.run))
    for step, fault in found.items():
        print(f"step {step}: {fault or 'good'}")
    return int(any(found.values()))


def _dialogues(args: argparse.Namespace) -> None:
    from jgrpo.data.chat import tokenize
    from jgrpo.data.dialogues import bandits, read_dialogues
    from jgrpo.data.rows import read_jsonl
    from jgrpo.files import write_atomically
    from jgrpo.models.load import tokenizer

    if not 0 <= args.swapped <= 1:
        raise ValueError(f"--swapped: must be from 0 to 1, got {args.swapped}")
    cfg = config_io.load(args.config, args.override)
    data, words = cfg.data, tokenizer(cfg.model.path)

    def fits(prompt: Sequence[Message]) -> bool:
        ids = tokenize(words, prompt, chat=data.chat, system_prompt=data.system_prompt)
        return len(ids) <= data.max_prompt_tokens

    found = read_dialogues(read_jsonl(args.dialogues))
    rows = list(bandits(found, fits, swapped=args.swapped))
    write_atomically(Path(args.to), "".join(f"{json.dumps(row)}\n" for row in rows))
    swapped, tasks = sum(row["swapped"] for row in rows), len({row["task"] for row in rows})
    print(
        f"{len(rows)} prompts of {tasks} tasks from {len(found)} dialogues ({swapped} prompts with "
        f"swapped outputs) in {args.to}"
    )


def _data_check(args: argparse.Namespace) -> int:
    from jgrpo.data.check import SHOWN, check
    from jgrpo.models.load import tokenizer

    cfg = config_io.load(args.config, args.override)
    report = check(cfg, tokenizer(cfg.model.path))
    if args.json:
        print(json.dumps(report.to_json()))
    else:
        for finding in report.findings[:SHOWN]:
            print(finding)
        if len(report.findings) > SHOWN:
            print(f"... and {len(report.findings) - SHOWN:,} more (--json lists all)")
        print(report.summary())
    return 2 if report.errors else 0
