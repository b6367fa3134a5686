"""From a YAML file and `key=value` words to a checked `Config`, and back.

`load` reads a file, merges what it extends, applies overrides, and reports every problem at once in
a `ConfigError`. `dump` writes a config that `load` reads back to an equal one; `diff` compares two.
The schema is `config.py`; rules between settings are in `config_checks.py`, `config_methods.py`.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from jgrpo import config_schema, config_yaml
from jgrpo.algo.methods import FIELDS, METHODS, SETTINGS, Method, field_problems, method
from jgrpo.config import Config
from jgrpo.config_checks import cross_checks
from jgrpo.config_methods import Problem
from jgrpo.config_schema import allowed, shown, suggestion
from jgrpo.config_yaml import KeyPath

_COMMAND_LINE = "command line"
_ADAPTER = pydantic.TypeAdapter(Config)


class ConfigError(ValueError):
    """A config that cannot be used; its text lists every problem.

    Attributes:
      source: the file, or what stands for it.
      problems: what is wrong, in the order of the file.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'' if count == 1 else 's'}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, completes and checks a config.

    Args:
      path: a YAML file; its `extends` names one base file, relative to it.
      overrides: words `key=value` with a dotted key, applied after the file; the value is YAML.
        `method=NAME` replaces the method, `method.FIELD=value` changes one field of its row.

    Returns:
      The config, with defaults filled in. Paths in it stay as they were given.

    Raises:
      ConfigError: with all problems of the file and the overrides.
    """
    path = Path(path)
    problems: list[Problem] = []
    origins: dict[KeyPath, str] = {}
    tree = _read_with_base(path, origins, problems)
    _apply_overrides(tree, overrides, origins, problems)
    known = _known_only(Config, tree, (), problems)
    cfg, refused = _validate(known)
    problems += refused
    if cfg is not None:
        problems += cross_checks(cfg)
    if problems or cfg is None:
        raise ConfigError(str(path), _placed(problems, origins))
    return cfg


def dump(cfg: Config) -> str:
    """Writes every setting as YAML, defaults and all constants of the method included."""
    return config_yaml.write(_plain(cfg))


def diff(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the values that differ by dotted key, in the order of the schema.

    A key that one config lacks has the value None there.

    Example:
      >>> from jgrpo.config import DataConfig, ModelConfig, RunConfig
      >>> cfg = Config(model=ModelConfig(path="tiny"), data=DataConfig(task="chain"),
      ...              run=RunConfig(dir="runs/a", steps=1))
      >>> diff(cfg, dataclasses.replace(cfg, run=RunConfig(dir="runs/b", steps=1, seed=2)))
      {'run.dir': ('runs/a', 'runs/b'), 'run.seed': (0, 2)}
    """
    return {".".join(key): values for key, values in _differences(_plain(a), _plain(b), ())}


# Reading and merging


def _read_with_base(
    path: Path, origins: dict[KeyPath, str], problems: list[Problem]
) -> dict[str, Any]:
    tree, lines = _read_file(path, "", problems)
    here = {key: f"line {line}" for key, line in lines.items()}
    origins.update(here)
    if "extends" not in tree:
        return tree
    base_name = tree.pop("extends")
    if not isinstance(base_name, str) or not base_name:
        message = f"must be the name of a file beside this one, got {shown(base_name)}"
        problems.append(Problem("extends", message))
        return tree
    base_path = path.parent / base_name
    if not base_path.is_file() or base_path.resolve() == path.resolve():
        others = sorted(file.name for file in path.parent.glob("*.yaml") if file != path)
        message = f"must be another file, relative to {path.parent}/, got {base_name!r}"
        problems.append(Problem("extends", message + suggestion(base_name, others)))
        return tree
    base, base_lines = _read_file(base_path, f"{base_name} ", problems)
    if base.pop("extends", None) is not None:
        message = f"must be absent from a file that is itself extended, got it in {base_name!r}"
        problems.append(Problem("extends", message, f"{base_name} line {base_lines[('extends',)]}"))
    origins.clear()
    origins.update({key: f"{base_name} line {line}" for key, line in base_lines.items()})
    _merge(base, tree, (), origins)
    origins.update(here)
    return base


def _read_file(
    path: Path, label: str, problems: list[Problem]
) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = ""
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():
            hint = suggestion(path.name, [file.name for file in path.parent.glob("*.yaml")])
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text ({error})"
        message = f"must be a readable YAML file, got: {reason}{hint}"
        raise ConfigError(str(path), [Problem("", message)]) from None
    document = config_yaml.read(text)
    where = [f"{label}line {fault.line}" if fault.line else "" for fault in document.faults]
    found = [
        Problem(".".join(fault.key), fault.message, place)
        for fault, place in zip(document.faults, where, strict=True)
    ]
    tree = {} if document.value is None else document.value
    if not isinstance(tree, dict):
        found.append(Problem("", f"must be {allowed(Config)}, got {shown(tree)}"))
    if not isinstance(tree, dict) or any(not fault.key for fault in document.faults):
        raise ConfigError(str(path), found)
    problems += found
    _name_method(tree)
    return tree, document.lines


def _name_method(tree: dict[str, Any]) -> None:
    """Writes `method: gspo` as `method: {name: gspo}`, so that fields can be merged into it."""
    if isinstance(tree.get("method"), str):
        tree["method"] = {"name": tree["method"]}


def _merge(
    base: dict[str, Any], new: dict[str, Any], key: KeyPath, origins: dict[KeyPath, str]
) -> None:
    for name, value in new.items():
        old = base.get(name)
        # Another method's constants must not leak into the row that replaces it.
        replaces = (*key, name) == ("method",) and isinstance(value, dict) and "name" in value
        if isinstance(old, dict) and isinstance(value, dict) and not replaces:
            _merge(old, value, (*key, name), origins)
        elif not (isinstance(old, dict) and value is None):  # an empty section says nothing
            base[name] = value
            _forget(origins, (*key, name))


def _forget(origins: dict[KeyPath, str], key: KeyPath) -> None:
    for other in [other for other in origins if other[: len(key)] == key]:
        del origins[other]


def _apply_overrides(
    tree: dict[str, Any],
    overrides: Sequence[str],
    origins: dict[KeyPath, str],
    problems: list[Problem],
) -> None:
    parsed: list[tuple[KeyPath, Any]] = []
    for word in overrides:
        name, equals, text = word.partition("=")
        key = tuple(name.split("."))
        if not equals or not all(key):
            message = f"must look like key=value with a dotted key such as optim.lr, got {word!r}"
            problems.append(Problem("", message, _COMMAND_LINE))
            continue
        document = config_yaml.read(text)
        is_quoted = text.lstrip()[:1] in ("'", '"')
        if document.faults:
            message = f"{document.faults[0].message}; got {shown(text)}"
            problems.append(Problem(name, message, _COMMAND_LINE))
            continue
        if isinstance(document.value, str) and not is_quoted and document.value != text.strip():
            message = f"must be in quotes, since YAML reads {shown(text)} as {document.value!r}"
            problems.append(Problem(name, message, _COMMAND_LINE))
            continue
        parsed.append((("method",) if key == ("method", "name") else key, document.value))
    # A whole section first, then its fields, so that the order of the words does not matter.
    for key, value in sorted(parsed, key=lambda pair: len(pair[0])):
        if not _put(tree, key, value):
            message = "cannot be set, since the key above it holds no mapping; give that key whole"
            problems.append(Problem(".".join(key), message, _COMMAND_LINE))
            continue
        _name_method(tree)
        _forget(origins, key)
        origins[key] = _COMMAND_LINE


def _put(tree: dict[str, Any], key: KeyPath, value: Any) -> bool:
    for name in key[:-1]:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            return False
    tree[key[-1]] = value
    return True


# Checking


def _known_only(
    cls: type, tree: dict[str, Any], key: KeyPath, problems: list[Problem]
) -> dict[str, Any]:
    """Returns the tree without keys that the schema lacks and numbers that are not finite."""
    known = config_schema.fields(cls)
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if name in known:
            result[name] = _known_value(known[name], value, (*key, name), problems)
        else:
            message = _unknown_key(cls, name)
            problems.append(Problem(".".join((*key, name)), message))
    return result


def _known_value(annotation: Any, value: Any, key: KeyPath, problems: list[Problem]) -> Any:
    cls = config_schema.section(annotation)
    if cls is not None and (isinstance(value, dict) or value is None):
        return _known_only(cls, value or {}, key, problems)
    item = config_schema.item(annotation)
    if item is not None and isinstance(value, list):
        return [_known_value(item, part, (*key, str(i)), problems) for i, part in enumerate(value)]
    return value


def _unknown_key(cls: type, name: str) -> str:
    if cls is Method and name in config_schema.NOT_SETTABLE:
        return "describes the source of the method's row and cannot be set; leave it out"
    known = list(config_schema.fields(cls))
    hint = suggestion(name, known)
    if not hint:
        elsewhere = [key for key in _all_keys() if key.rpartition(".")[2] == name]
        hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
    return f"unknown key{hint} (known: {', '.join(known)})"


@functools.cache
def _all_keys() -> tuple[str, ...]:
    sections = config_schema.fields(Config).items()
    pairs = [(name, config_schema.section(annotation)) for name, annotation in sections]
    return tuple(f"{name}.{key}" for name, cls in pairs if cls for key in config_schema.fields(cls))


def _validate(tree: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    # An absent section is checked as an empty one, which names the very keys that are missing.
    for name in ("model", "data", "run"):
        tree.setdefault(name, {})
    problems = [
        Problem(".".join(key), f"must be a finite number, got {shown(value)}")
        for key, value in _leaves(tree, ())
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if problems:
        return None, problems
    rest = {name: value for name, value in tree.items() if name != "method"}
    row = _method(tree.get("method", {}), problems)
    try:
        cfg = _ADAPTER.validate_json(json.dumps(rest), strict=True)
    except pydantic.ValidationError as error:
        for fault in error.errors(include_url=False):
            problem = _translated(fault, rest)
            # A union reports once for each of its options.
            if problem not in problems:
                problems.append(problem)
        return None, problems
    return dataclasses.replace(cfg, method=row) if row else None, problems


def _method(given: Any, problems: list[Problem]) -> Method | None:
    """Builds a method from the mapping under `method`, of which `name` may be left out."""
    name = given.get("name", "grpo") if isinstance(given, dict) else given
    if not isinstance(name, str) or name not in METHODS:
        message = f"must be the name of a method ({', '.join(METHODS)}), got {shown(name)}"
        hint = suggestion(name, METHODS) if isinstance(name, str) else ""
        problems.append(Problem("method", message + hint))
        return None
    # In the order of the fields and as floats, so that equal methods describe themselves equally.
    changed = {field: given[field] for field in SETTINGS if field in given}
    row = {field: getattr(METHODS[name], field) for field in FIELDS}
    faults = field_problems(row | changed)
    problems += [Problem(f"method.{field}", message) for field, message in faults.items()]
    if faults:
        return None
    return method(name, **{field: FIELDS[field][0](value) for field, value in changed.items()})


def _translated(fault: Any, tree: dict[str, Any]) -> Problem:
    """Says what a pydantic error means in terms of the schema."""
    here: Any = tree
    key: list[str] = []
    for part in fault["loc"]:
        named = isinstance(here, dict) and part in here
        if named or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            key.append(str(part))
        elif fault["type"] == "missing":
            key.append(str(part))
            here = None
        else:
            break
    annotation = config_schema.at(Config, key)
    if fault["type"] == "missing":
        return Problem(".".join(key), f"missing; must be {allowed(annotation)}")
    words = config_schema.choices(annotation)
    hint = suggestion(here, words) if isinstance(here, str) else ""
    if config_schema.plain(annotation) is str and here is not None:
        hint = "; put it in quotes"
    return Problem(".".join(key), f"must be {allowed(annotation)}, got {shown(here)}{hint}")


def _placed(problems: Sequence[Problem], origins: Mapping[KeyPath, str]) -> list[Problem]:
    """Adds to each problem where its key, or the nearest key above it, was written."""
    placed = []
    for problem in problems:
        key = tuple(problem.key.split("."))
        above = (origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins)
        placed.append(dataclasses.replace(problem, where=problem.where or next(above, "")))
    return placed


# Plain values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = config_schema.fields(type(value))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


def _leaves(value: Any, key: KeyPath) -> list[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        return [leaf for name, part in value.items() for leaf in _leaves(part, (*key, name))]
    if isinstance(value, list):
        return [leaf for i, part in enumerate(value) for leaf in _leaves(part, (*key, str(i)))]
    return [(key, value)]


def _differences(a: Any, b: Any, key: KeyPath) -> list[tuple[KeyPath, tuple[Any, Any]]]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = [*a, *(name for name in b if name not in a)]
        # A sentinel that equals nothing: a key that one side lacks differs, even from null.
        return [
            found
            for name in names
            for found in _differences(a.get(name, _ABSENT), b.get(name, _ABSENT), (*key, name))
        ]
    if type(a) is type(b) and a == b:
        return []
    return [(key, (None if a is _ABSENT else a, None if b is _ABSENT else b))]


_ABSENT = object()
