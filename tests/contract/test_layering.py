"""Reads the imports and names of every module and holds them to the map of the package.

The rules are written for packages, so a new module is covered without a change here: inside a
package of the pure core it is pure unless it stands in `SHELL_MODULES`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "jgrpo"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PACKAGE_LINES = 39_800
MAX_LINES = {"train.py": 40, "jgrpo/run.py": 300}

# The pure core: packages and modules that map arrays and records to arrays and records.
PURE = {"types", "keys", "buckets", "algo", "models", "rollout", "learner"}
SHELL_MODULES = {
    *("models.hf", "models.gguf", "models.load", "models.peft"),
    *("rollout.engine", "rollout.meter", "rollout.work"),
}
PURE_IMPORTS = {
    *("jax", "numpy", "optax", "flax", "jaxtyping", "jgrpo"),
    *("annotated_types", "collections", "dataclasses", "difflib", "enum", "fractions", "functools"),
    *("hashlib", "importlib", "itertools", "math", "operator", "re", "typing", "types", "zlib"),
}
IMPURE_NAMES = {"print", "open", "input", "exec", "eval", "__import__"}

# Which of our own parts a part may import, itself apart. Parts not named here are shell.
_BASE = {"types", "keys", "buckets"}
_CORE = {*_BASE, "config", "algo", "models", "parallel"}
MAY_IMPORT = {
    "types": set(),
    "keys": {"types", "buckets"},
    "buckets": set(),
    "algo": {"types"},
    "config": {"algo", "config_context"},
    "config_context": set(),
    "parallel": {"types", "config"},
    "models": {*_BASE, "parallel"},
    "strategy": _CORE,
    "rollout": _CORE,
    "learner": _CORE,
}
# Who may bring sampling, scoring and learning together; nobody below imports them.
TOP = {"assembly", "learning", "warm_up", "run", "reopen", "planning", "cli", "__main__"}
STAGES = {"rollout", "rewards", "learner"}


def _name(path: Path) -> str:
    """`jgrpo/algo/loss.py` is `algo.loss`; the package itself is ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PROGRAMS = [
    path
    for path in [
        ROOT / "train.py",
        *sorted(ROOT.glob("scripts/*.py")),
        *sorted(ROOT.glob("examples/*.py")),
        *sorted(ROOT.glob("benchmarks/*.py")),
    ]
    if path.exists()
]


def _part(name: str) -> str:
    return name.partition(".")[0]


def _imports(name: str) -> Iterator[tuple[int, str]]:
    """Every dotted name that a module imports, at whatever depth, with its line."""
    path = MODULES[name]
    package = ["jgrpo", *name.split(".")] if name else ["jgrpo"]
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _own_imports(name: str) -> Iterator[tuple[int, str]]:
    """The modules of ours that a module imports, named as in `MODULES`, with the line."""
    for line, target in _imports(name):
        if _part(target) != "jgrpo":
            continue
        inner = target.partition(".")[2]
        while inner not in MODULES:  # `jgrpo.algo.loss.policy_loss` names a function of algo.loss
            inner = inner.rpartition(".")[0]
        yield line, inner


def _is_pure(name: str) -> bool:
    return _part(name) in PURE and name not in SHELL_MODULES


def _all(names: Iterator[str] | list[str], rule: str) -> None:
    found = list(names)
    assert not found, rule + "\n" + "\n".join(found)


PURE_MODULES = [name for name in MODULES if _is_pure(name)]


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_module_imports_only_array_libraries_and_small_stdlib(name):
    _all(
        [
            f"{MODULES[name]}:{line}: {target}"
            for line, target in _imports(name)
            if _part(target) not in PURE_IMPORTS
        ],
        f"the pure core imports only {sorted(PURE_IMPORTS)}; move the I/O to the shell:",
    )


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_module_imports_no_shell_module_of_ours(name):
    _all(
        [
            f"{MODULES[name]}:{line}: jgrpo.{target}"
            for line, target in _own_imports(name)
            if target in SHELL_MODULES
        ],
        "the pure core does not know the shell:",
    )


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_module_does_no_input_or_output(name):
    tree = ast.parse(MODULES[name].read_text())
    _all(
        [
            f"{MODULES[name]}:{node.lineno}: {node.id}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id in IMPURE_NAMES
        ],
        "the pure core does not print, read, write or execute text:",
    )


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_the_parts_below_it(name):
    part = _part(name)
    allowed = MAY_IMPORT.get(part, {_part(other) for other in MODULES} - TOP)
    if name in SHELL_MODULES:
        allowed = {*allowed, "files"}
    if part in TOP:
        return
    _all(
        [
            f"{MODULES[name]}:{line}: jgrpo.{target}"
            for line, target in _own_imports(name)
            if _part(target) not in allowed | {part, ""}
        ],
        f"{part} may import {sorted(allowed)} of ours only:",
    )


def test_only_the_loop_and_the_command_line_join_the_stages():
    joined = {
        name: STAGES & {_part(target) for _, target in _own_imports(name)} for name in MODULES
    }
    _all(
        [name for name, stages in joined.items() if stages == STAGES and _part(name) not in TOP],
        f"only {sorted(TOP)} may import all of {sorted(STAGES)}:",
    )


def test_modules_import_each_other_without_cycles():
    graph = {
        name: {target for _, target in _own_imports(name)} - {name, _part(name)} for name in MODULES
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "cycle: " + " -> ".join([*trail, name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_package_never_imports_torch(name):
    _all(
        [f"{MODULES[name]}:{line}" for line, target in _imports(name) if _part(target) == "torch"],
        "torch is for the parity tests only:",
    )


def test_programs_never_import_torch_except_to_make_golden_files():
    for path in PROGRAMS:
        if path.name == "make_golden.py":
            continue
        imported = {
            _part(alias.name if isinstance(node, ast.Import) else node.module or "")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert "torch" not in imported, path


@pytest.mark.parametrize("path", [*MODULES.values(), *PROGRAMS], ids=lambda p: p.name)
def test_files_and_functions_are_small(path):
    text = path.read_text()
    limit = MAX_LINES.get(str(path.relative_to(ROOT)), MAX_FILE_LINES)
    lines = len(text.splitlines())
    assert lines <= limit, f"{path} has {lines} lines, at most {limit}: split it along the data"
    _all(
        [
            f"{path}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno is not None
            and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
        ],
        f"a function has at most {MAX_FUNCTION_LINES} lines:",
    )


def test_package_stays_within_its_budget(capsys):
    total = sum(len(path.read_text().splitlines()) for path in MODULES.values())
    with capsys.disabled():
        sys.stdout.write(f"[jgrpo/ has {total} lines in {len(MODULES)} files] ")
    assert total <= MAX_PACKAGE_LINES


def test_imports_are_resolved_to_modules(tmp_path, monkeypatch):
    """The reader itself: absolute, relative, nested and function-level imports are all seen."""
    source = (
        "import jax.numpy as jnp\n"
        "from jgrpo.algo.loss import policy_loss\n"
        "from . import trust\n"
        "from ..types import Batch\n"
        "def f():\n"
        "    from jgrpo import config\n"
    )
    path = tmp_path / "probe.py"
    path.write_text(source)
    known = dict.fromkeys(("", "algo", "algo.loss", "algo.trust", "types", "config"), path)
    monkeypatch.setattr(sys.modules[__name__], "MODULES", {**known, "algo.probe": path})
    assert sorted(_own_imports("algo.probe")) == [
        (2, "algo.loss"),
        (3, "algo.trust"),
        (4, "types"),
        (6, "config"),
    ]
    assert (1, "jax.numpy") in list(_imports("algo.probe"))
