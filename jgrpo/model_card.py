"""The model card of an export: README.md with YAML front matter, written from the run folder.

Only what the run folder says is claimed: a file that is absent makes a gap that is named. The frame
of the text is `assets/model_card.md`.
"""

import dataclasses
import json
import re
import string
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from jgrpo.algo import METHODS, Method
from jgrpo.algo.slots import choices, constants
from jgrpo.config import Config
from jgrpo.evaluate import EvalReport
from jgrpo.files import read_json_if_there
from jgrpo.folder import read_summary
from jgrpo.models.architecture import num_params
from jgrpo.models.load import LoadedModel

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LONGEST_EXAMPLE = 200
# Tasks of ours that are datasets of the Hugging Face hub.
_DATASETS: Mapping[str, str] = {"gsm8k": "openai/gsm8k"}
_PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({path})
model = AutoModelForCausalLM.from_pretrained({path})
ids = tokenizer({prompt}, return_tensors="pt").input_ids
output = model.generate(ids, max_new_tokens={max_tokens})
print(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))"""
_SERVE = "vllm serve ./{name}\npython -m sglang.launch_server --model-path ./{name}"
_SERVE_ADAPTER = "vllm serve {base} --enable-lora --lora-modules {name}=./{name}"
_CHAT = _PLAIN.replace(
    'ids = tokenizer({prompt}, return_tensors="pt").input_ids',
    """\
messages = {messages}
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).input_ids""",
)


def model_card(
    source: Path,
    cfg: Config,
    model: LoadedModel,
    *,
    name: str,
    step: int,
    dtype: str,
    adapter: bool = False,
) -> str:
    """The text of README.md.

    Args:
      source: the run folder; environment.json, summary.json, metrics.jsonl and samples are read.
      cfg: the run's config.
      model: for its size and tokenizer.
      name: of the model; the name of the directory it is exported to.
      step: steps that the weights have trained.
      dtype: precision of the written weights.
      adapter: whether they are a PEFT adapter alone.
    """
    row = _metrics_after(source, step)
    size = f"{num_params(model.arch) / 1e6:.3g}M parameters ({model.arch.family})"
    summary = (
        f"{size}, trained from `{cfg.model.path}` for {step} steps with `{cfg.method.name}` on the "
        f"task `{cfg.data.task}` by jgrpo (reinforcement learning of language models in JAX)."
    )
    if cfg.model.init == "random":
        summary = summary.replace("trained from", "trained from fresh weights in the form of")
    if adapter:
        summary += " This is its adapter alone: with `peft` installed, transformers puts it on."
    stop = ""
    if cfg.rollout.stop:
        listed = ", ".join(f"`{text!r}`" for text in cfg.rollout.stop)
        stop = f" Training ended completions at {listed} too: pass them as stop strings."
    frame = resources.files("jgrpo") / "assets" / "model_card.md"
    return string.Template(frame.read_text(encoding="utf-8")).substitute(
        front_matter=yaml.safe_dump(_front_matter(cfg, adapter), sort_keys=False),
        name=name,
        summary=summary,
        python=_python(source, cfg, model, name),
        serve=(_SERVE_ADAPTER if adapter else _SERVE).format(name=name, base=cfg.model.path),
        stop=stop,
        results=_results(source, step, row),
        training=_training(source, cfg, step, dtype, row),
    )


def _front_matter(cfg: Config, adapter: bool) -> dict[str, Any]:
    path = cfg.model.path
    content: dict[str, Any] = {}
    if _HUB_ID.fullmatch(path) and not Path(path).exists():
        content["base_model"] = path
    library = "peft" if adapter else "transformers"
    content |= {"library_name": library, "pipeline_tag": "text-generation"}
    content["tags"] = ["jgrpo", "reinforcement-learning", cfg.method.name, f"task:{cfg.data.task}"]
    dataset = _DATASETS.get(cfg.data.task)
    if cfg.data.task == "hf" and _HUB_ID.fullmatch(cfg.data.path):
        dataset = None if Path(cfg.data.path).exists() else cfg.data.path
    if dataset is not None:
        content["datasets"] = [dataset]
    return content


def _python(source: Path, cfg: Config, model: LoadedModel, name: str) -> str:
    """A program that asks the model a prompt of the run, in the form the run asked it."""
    ids = _first_sample(source).get("prompt_ids", [])
    prompt = str(model.tokenizer.decode(ids, skip_special_tokens=True))
    special = [i for i in model.tokenizer.all_special_ids if i != model.tokenizer.bos_token_id]
    is_chat = model.tokenizer.chat_template is not None and (
        cfg.data.chat == "always"
        or bool(cfg.data.system_prompt)
        or (cfg.data.chat == "auto" and bool(set(ids).intersection(special)))
    )
    if is_chat or not 0 < len(prompt) <= _LONGEST_EXAMPLE:
        prompt = "..."
    messages = [{"role": "user", "content": prompt}]
    if cfg.data.system_prompt:
        messages.insert(0, {"role": "system", "content": cfg.data.system_prompt})
    return (_CHAT if is_chat else _PLAIN).format(
        path=json.dumps(f"./{name}"),
        prompt=json.dumps(prompt),
        messages=json.dumps(messages),
        max_tokens=cfg.rollout.max_completion_tokens,
    )


def _results(source: Path, step: int, row: Mapping[str, Any]) -> str:
    """The held-out evaluations that the run has made, and of which weights each is."""
    summary = read_summary(source)
    columns: dict[str, Mapping[str, float]] = {}
    num_prompts = 0
    if "eval_before" in summary:
        before = EvalReport.from_json(summary["eval_before"])
        columns["before training"], num_prompts = before.metrics(), before.num_prompts
    final = summary.get("steps")
    here = f"step {step} (this model)"
    if "eval/greedy_accuracy" in row:
        columns[here] = {name: value for name, value in row.items() if name.startswith("eval/")}
    if "eval_after" in summary:
        after = EvalReport.from_json(summary["eval_after"])
        columns[here if final == step else f"step {final}"] = after.metrics()
    if not columns:
        return "The run folder holds no evaluation."
    names = [name for name in next(iter(columns.values())) if not name.endswith(("_low", "_high"))]
    rows = [
        [name.removeprefix("eval/"), *(_cell(column, name) for column in columns.values())]
        for name in names
    ]
    text = f"{num_prompts} held-out prompts of the task; 95 % bootstrap intervals over prompts.\n\n"
    if here not in columns:
        text += "**These weights were not evaluated**; the run's evaluations were of others.\n\n"
    return text + _table(["", *columns], rows)


def _training(source: Path, cfg: Config, step: int, dtype: str, row: Mapping[str, Any]) -> str:
    method, data, rollout = cfg.method, cfg.data, cfg.rollout
    environment = read_json_if_there(source / "environment.json")
    devices = [str(device) for device in environment.pop("devices", [])]
    commit = environment.pop("commit", None)
    attention = environment.pop("attention", "not recorded")
    scale = f"{step} of {cfg.run.steps}; {data.num_prompts_per_step} prompts a step"
    sampling = {**dataclasses.asdict(rollout), "top_k": rollout.top_k or "off"}
    rows = [
        ["method", _method(method)],
        ["slots", _listed({k: v for k, v in _slots(method).items() if v != "none"})],
        ["constants", _listed(constants(method)) or "none"],
        ["paper", method.paper],
        ["departs from it", method.departs],
        ["task", f"`{data.task}` {data.path} {_listed(data.options)}"],
        ["rewards", _rewards(cfg, row)],
        ["steps", f"{scale}, {rollout.group_size} completions a prompt"],
        ["sampling", _listed(sampling, without=("group_size", "chunk_tokens", "stop"))],
        ["optimizer", "AdamW, " + _listed(dataclasses.asdict(cfg.optim))],
        [
            "precision",
            f"weights {cfg.model.param_dtype}, matmuls {cfg.model.dtype}, attention {attention}; "
            f"written as {dtype}",
        ],
        *(
            [["adapters", _listed(dataclasses.asdict(cfg.model.lora))]]
            if cfg.model.lora.rank
            else []
        ),
        ["seed", str(cfg.run.seed)],
        ["devices", f"{len(devices)}: {', '.join(devices[:8])}" if devices else "not recorded"],
        ["software", _listed(environment) or "not recorded"],
        ["commit", f"`{commit}`" if commit else "not recorded"],
    ]
    return _table(["", "value"], rows)


def _method(method: Method) -> str:
    """The method's name, with what differs from the row of that name."""
    row = METHODS.get(method.name, method)
    settings = _slots(method) | constants(method)
    changed = {name: value for name, value in settings.items() if value != getattr(row, name)}
    return f"`{method.name}`" + (f" with {_listed(changed)}" if changed else "")


def _slots(method: Method) -> dict[str, Any]:
    return {slot: getattr(method, slot) for slot in choices(method)}


def _rewards(cfg: Config, row: Mapping[str, Any]) -> str:
    if cfg.reward.functions:
        entries = (dataclasses.asdict(entry) for entry in cfg.reward.functions)
        return "; ".join(f"`{entry.pop('name')}` {_listed(entry)}" for entry in entries)
    names = [found[1] for key in row if (found := re.fullmatch(r"reward/(.+)/mean", key))]
    return ", ".join(f"`{name}`" for name in names) or "the task's own"


def _cell(column: Mapping[str, float], name: str) -> str:
    value = column.get(name)
    if value is None:
        return "-"
    low, high = column.get(f"{name}_low"), column.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{value:.3f}{interval}"


def _listed(values: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """Settings as `key=value`, empty ones left out."""
    shown = {key: value for key, value in values.items() if key not in set(without)}
    return ", ".join(f"{key}={value}" for key, value in shown.items() if value not in ("", {}, ()))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _metrics_after(source: Path, step: int) -> dict[str, Any]:
    """The metrics of the step that made these weights; empty if they are not there."""
    path = source / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        row = json.loads(line)
        if row["step"] == step - 1:
            return row
    return {}


def _first_sample(source: Path) -> dict[str, Any]:
    """The first completion that the run has written down; empty if there is none."""
    for path in sorted((source / "samples").glob("step_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            return json.loads(line)
    return {}
