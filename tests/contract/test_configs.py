"""Every recipe loads; every setting is documented and read by something."""

import ast
import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from jgrpo import config_schema
from jgrpo.config import Config
from jgrpo.config_io import dump, load
from jgrpo.models.architecture import Architecture
from jgrpo.models.load import architecture
from jgrpo.planner import describe, plan

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
ARCH = Architecture(
    family="qwen3",
    vocab_size=151936,
    d_model=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_width=128,
    ffn_width=3072,
    tied_embeddings=True,
    qk_norm=True,
    max_positions=40960,
)
CHIPS = {"v5e8": 8, "v5p16": 16, "v5p64": 64}


def sections(cls: type = Config, prefix: str = "") -> list[tuple[str, type]]:
    """All config dataclasses with the dotted key each is found under."""
    found = []
    for name, annotation in config_schema.fields(cls).items():
        inner = config_schema.section(annotation) or config_schema.section(
            config_schema.item(annotation)
        )
        if inner is not None:
            found += [(prefix + name, inner), *sections(inner, f"{prefix}{name}.")]
    return found


def generate_docs():
    spec = importlib.util.spec_from_file_location(
        "generate_docs", ROOT / "scripts/generate_docs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_its_resolved_form_loads_back(path, tmp_path):
    cfg = load(path)
    again = tmp_path / "config.yaml"
    again.write_text(dump(cfg), encoding="utf-8")
    assert load(again) == cfg


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_begins_with_command_hardware_time_and_score(path):
    comments = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(True) if line[0] == "#"
    )
    for word in ("Command", "Hardware", "Time", "Score"):
        assert re.search(rf"^# {word}: +\S", comments, re.M), word
    assert f"configs/{path.name}" in comments


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_plan_of_a_recipe_counts_its_batch(path):
    cfg = load(path)
    devices = CHIPS.get(path.stem.rpartition("_")[2], 1)
    arch = architecture(cfg.model.path) if cfg.mesh.expert > 1 else ARCH
    the_plan = plan(cfg, arch, devices)
    assert the_plan.completions == cfg.data.num_prompts_per_step * cfg.rollout.group_size
    each = the_plan.completions_per_microbatch * the_plan.microbatches * devices
    assert each == the_plan.completions_per_update
    assert f"{the_plan.tokens:,} a step" in describe(the_plan)


def test_recipes_for_a_machine_fit_its_memory():
    gib = 2**30
    v5e = plan(load(ROOT / "configs/grpo_gsm8k_qwen3_0.6b_v5e8.yaml"), ARCH, 8)
    gpu = plan(load(ROOT / "configs/grpo_gsm8k_qwen3_0.6b_gpu.yaml"), ARCH, 1)
    assert v5e.memory.peak < 0.75 * 16 * gib
    assert gpu.memory.peak < 0.75 * 80 * gib


def test_all_dataclasses_of_the_schema_are_small_sections():
    for key, cls in sections():
        if key != "method":
            assert len(dataclasses.fields(cls)) <= 15, key


def test_every_setting_has_a_one_line_docstring_and_stands_in_the_reference():
    module = generate_docs()
    page = module.config_page()
    for key, cls in sections():
        docs = module.field_docs(cls)
        for name in config_schema.fields(cls):
            assert docs.get(name, "").endswith("."), f"{key}.{name} has no docstring"
            if config_schema.section(config_schema.fields(cls)[name]) is None:
                assert re.search(rf"`{re.escape(key)}(\[\])?\.{name}`", page), f"{key}.{name}"


def _readers() -> list[tuple[str, set[str]]]:
    """Source text and attribute names of each module that is more than schema or arithmetic."""
    found = []
    for path in (ROOT / "jgrpo").rglob("*.py"):
        if path.stem.startswith("config") or path.stem in ("planner", "methods", "describe"):
            continue
        text = path.read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(text))
        found.append((text, {node.attr for node in nodes if isinstance(node, ast.Attribute)}))
    return found


NICKNAMES = dict.fromkeys(("reward.functions", "calls.experts"), (r"reward\.spec",))
"""What else a section is called where it is read."""


def test_every_setting_is_read_by_a_module_that_knows_its_section():
    readers = _readers()
    unread = []
    for key, cls in sections():
        names = (cls.__name__, rf"\.{key.rpartition('.')[2]}", *NICKNAMES.get(key, ()))
        section = re.compile("|".join(rf"{name}\b" for name in names))
        for name in config_schema.fields(cls):
            if not any(name in attributes and section.search(text) for text, attributes in readers):
                unread.append(f"{key}.{name}")
    assert not unread
