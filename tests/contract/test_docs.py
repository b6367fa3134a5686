"""Holds every page to the tree: commands parse, files exist, links resolve, doctests pass.

Only fenced blocks marked `sh` are commands to be typed as they stand. Each begins with a program
that `_check` knows; an unknown one is an error, so that no command goes unread.
"""

import contextlib
import doctest
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jgrpo import cli, config_io
from jgrpo.parallel import preflight
from jgrpo.sweep.file import read
from jgrpo.sweep.plan import expand

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "configs", "examples", "benchmarks", "tpu_setup")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "jgrpo").rglob("*.py")
    if path.name != "__main__.py"
)
# Tokens that begin like this name files of the tree; others, such as runs/, are made by commands.
TREE = ("configs/", "docs/", "scripts/", "tests/", "examples/", "benchmarks/", "tpu_setup/")


def commands(text: str) -> Iterator[str]:
    """Yields the commands of a page's `sh` blocks, continued lines joined, comments left out."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield shlex.join(words)


def prose(text: str) -> str:
    """Returns a page without its fenced blocks and inline code, where brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """Returns the names that a page's headings get when it is rendered."""
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def _check_flags(words: list[str], main: Callable[[list[str]], int], command: list[str]) -> None:
    """Raises unless `command --help` works and names every flag among the words."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0, f"{command} is not a command"
    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert flag in [*text.getvalue().replace(",", " ").split(), "--help"], f"no flag {flag}"


def _check_train(words: list[str]) -> None:
    flags = [word for word in words if word.startswith("--")]
    _check_flags(flags, cli.train_main, [])
    if "--sweep" in words:
        file, *rest = words[words.index("--sweep") + 1 :]
        expand(read(file), [word for word in rest if "=" in word])
    elif words != ["--help"]:
        config, *overrides = [word for word in words if word not in flags]
        config_io.load(config, overrides)


def _check_python(words: list[str]) -> None:
    if words[:1] == ["train.py"]:
        _check_train(words[1:])
    elif words[:1] == ["-m"]:
        _check([".venv/bin/" + words[1], *words[2:]])
    else:
        assert (ROOT / words[0]).is_file(), f"no such program: {words[0]}"


def _check_pip(words: list[str]) -> None:
    assert words[0] == "install", words
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"(?:jgrpo|\.)\[([\w,]+)\]", " ".join(words)):
        unknown = set(extra.split(",")) - set(known["optional-dependencies"])
        assert not unknown, f"pyproject.toml has no extra {unknown}"


def _check(words: list[str]) -> None:
    """Raises if a documented command cannot be meant for this tree."""
    while re.fullmatch(r"\w+=.*", words[0]):  # VARIABLE=value before the program
        words = words[1:]
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    for word in arguments:
        if word.startswith(TREE):
            assert (ROOT / word).exists(), f"no such file: {word}"
        if word.startswith("../shared/") and (ROOT / "../shared").is_dir():
            assert (ROOT / word).exists(), f"no such file: {word}"
    if program == "make":
        targets = {word for word in arguments if "=" not in word}
        assert targets <= _make_targets(), f"Makefile lacks {targets - _make_targets()}"
    elif program in ("python", "python3"):
        _check_python(arguments)
    elif program == "jgrpo":
        _check_flags(arguments, cli.main, [word for word in arguments[:1] if word != "--help"])
    elif program == "jgrpo.parallel.preflight":
        _check_flags(arguments, preflight.main, [])
    elif program in ("pip", "pip3"):
        _check_pip(arguments)
    elif program in ("bash", "sh"):
        assert (ROOT / arguments[0]).is_file(), f"no such script: {arguments[0]}"
    elif "/" in program:
        assert (ROOT / program).is_file(), f"no such program: {program}"
    else:
        known = {"git", "cd", "pytest", "pre-commit", "tensorboard"}
        assert program in known, f"unknown program {program}; teach it to this test: {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_documented_command_fits_the_tree(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page.read_text()):
        try:
            _check(shlex.split(command))
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{page.name}: `{command}`: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), f"{page.name}: no heading for {link}"


def test_the_program_with_the_losses_alone_runs_and_imports_nothing_else_of_ours(tmp_path):
    """As a stranger's: in a process of its own, in another folder, and the reward rises."""
    section = (ROOT / "README.md").read_text().partition("## The losses alone")[2]
    program = re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S)[0]
    code = [line for line in program.splitlines() if line.strip()]
    assert len(code) <= 20
    assert {line for line in code if "jgrpo" in line} == {"from jgrpo import algo"}
    path = tmp_path / "stranger.py"
    path.write_text(program + "\nimport sys\nprint(*sorted(sys.modules))\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said, modules = done.stdout.splitlines()
    assert float(said.removeprefix("mean reward ")) > 0.9
    imported = set(modules.split())
    ours = {name for name in imported if name.partition(".")[0] == "jgrpo"}
    assert "jgrpo.algo.loss" in ours
    assert {name for name in ours if not name.startswith("jgrpo.algo")} == {"jgrpo", "jgrpo.types"}
    assert not imported & {"transformers", "flax", "optax", "orbax", "grain", "pydantic", "yaml"}


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module):
    result = doctest.testmod(
        importlib.import_module(module),
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.failed == 0


def test_sh_blocks_are_read_and_other_blocks_are_not():
    page = "```sh\nA=1 make x \\\n  b=2  # why\n\n# only a remark\n```\n```python\nmake y\n```\n"
    assert list(commands(page)) == ["A=1 make x b=2"]


@pytest.mark.parametrize(
    "command",
    [
        "make no_such_target",
        "python no_such_file.py",
        "python train.py configs/no_such_recipe.yaml",
        "python train.py configs/quickstart.yaml optim.no_such_key=1",
        "python train.py configs/quickstart.yaml --no-such-flag",
        "jgrpo no_such_command",
        "jgrpo methods --no-such-flag",
        "bash scripts/no_such_script.sh",
        "no_such_program --help",
        "pip install 'jgrpo[no_such_extra]'",
    ],
)
def test_a_command_that_does_not_fit_is_refused(command):
    with pytest.raises((AssertionError, ValueError)):
        _check(shlex.split(command))


def test_heading_anchors_follow_the_rendered_form():
    assert anchors("# Why is my reward flat?\n## `--check`, first\n") == {
        "why-is-my-reward-flat",
        "--check-first",
    }
