"""YAML as configs use it: a strict subset of YAML 1.2, with the line of every key.

Reading differs from PyYAML's defaults where those surprise: `1e-6` is a number, `yes`, `no`, `on`,
`off` and dates are text, `010` is ten; a key given twice, an alias or a tag is an error. Writing
quotes text that would be read as something else. What the keys mean is not known here.
"""

import dataclasses
import math
import re
from typing import Any, TypeAlias, cast

import yaml

KeyPath: TypeAlias = tuple[str, ...]

_PREFIX = "tag:yaml.org,2002:"
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
# Longer ones read as floats, which no integer setting accepts.
_INT = re.compile(r"^(?:[-+]?[0-9]{1,18}|0o[0-7]{1,18}|0x[0-9a-fA-F]{1,14})$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# PyYAML indexes its patterns by first letter; None stands for all of them.
_RESOLVERS: dict[Any, list[tuple[str, re.Pattern[str]]]] = {
    None: [
        (_PREFIX + "null", _NULL),
        (_PREFIX + "bool", _BOOL),
        (_PREFIX + "int", _INT),
        (_PREFIX + "float", _FLOAT),
    ]
}


class _Loader(yaml.SafeLoader):
    """Composes nodes with the resolvers above; refuses aliases and tags."""

    yaml_implicit_resolvers = _RESOLVERS

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(
                f"the alias *{event.anchor} is not supported; write the value out", event
            )
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            raise _refusal(f"the tag {event.tag} is not supported; write the plain value", event)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that this module, or a YAML 1.1 reader, would take for something else."""

    yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML would fold some of these into spaces; in double quotes they are escaped.
        style = '"' if any(mark in data for mark in "\n\r\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(_PREFIX + "str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something wrong with the text of a file.

    Attributes:
      key: where, as names from the root; empty for the whole text.
      message: what is wrong and what to do.
      line: counted from 1; None if unknown.
    """

    key: KeyPath
    message: str
    line: int | None


@dataclasses.dataclass(frozen=True)
class Document:
    """A parsed text.

    Attributes:
      value: dicts, lists, str, int, float, bool and None.
      lines: the line of each key, counted from 1; list items are named by their index.
      faults: what was refused; `value` lacks those parts.
    """

    value: Any
    lines: dict[KeyPath, int]
    faults: tuple[Fault, ...]


def read(text: str) -> Document:
    """Parses one YAML document. Never raises: faults are collected in the result."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        message = f"not valid YAML: {error.problem or error.context or 'syntax error'}"
        return Document(None, {}, (Fault((), message, line),))
    except yaml.YAMLError as error:
        return Document(None, {}, (Fault((), f"not valid YAML: {error}", None),))
    except RecursionError:
        return Document(None, {}, (Fault((), "not valid YAML: nested too deeply", None),))
    lines: dict[KeyPath, int] = {}
    faults: list[Fault] = []
    value = None if node is None else _value(node, (), lines, faults)
    return Document(value, lines, tuple(faults))


def write(value: Any) -> str:
    r"""Writes plain values as block YAML that `read` turns back into equal ones.

    Example:
      >>> write({"optim": {"lr": 1e-06}, "stop": ["yes", "1e-6"]})
      "optim:\n  lr: 1.0e-06\nstop:\n- 'yes'\n- '1e-6'\n"
    """
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, line_break="\n"
    )


def _refusal(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    # The stubs know the marks of the parser in C only; this one is in Python.
    mark = cast(yaml.Mark, event.start_mark)
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _value(node: yaml.Node, key: KeyPath, lines: dict[KeyPath, int], faults: list[Fault]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, lines, faults)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            path = (*key, str(index))
            lines[path] = child.start_mark.line + 1
            items.append(_value(child, path, lines, faults))
        return items
    return _scalar(node.value, node.tag.removeprefix(_PREFIX))


def _mapping(
    node: yaml.MappingNode, key: KeyPath, lines: dict[KeyPath, int], faults: list[Fault]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name_node, child in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            faults.append(Fault(key, "a key must be a plain word, got a list or mapping", line))
            continue
        name = name_node.value
        path = (*key, name)
        if name in result:
            faults.append(Fault(path, f"given twice; first on line {lines[path]}", line))
            continue
        lines[path] = line
        result[name] = _value(child, path, lines, faults)
    return result


def _scalar(text: str, kind: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return _float(text) if kind == "float" else text


def _float(text: str) -> float:
    word = text.lower().lstrip("+-")
    if word == ".nan":
        return math.nan
    if word == ".inf":
        return -math.inf if text.startswith("-") else math.inf
    return float(text)
