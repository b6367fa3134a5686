"""What the dataclasses of `config.py` allow, as data and as text.

Names, types and ranges are read from the annotations, so that errors, suggestions and the reference
page cannot disagree with the schema. Values are not checked here.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt

from jgrpo.algo.methods import TEXTS

NOT_SETTABLE = frozenset(TEXTS) - {"name"}
"""Texts of a method's row: they describe its source and cannot be set in a config."""

_BASIC = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def fields(cls: type) -> dict[str, Any]:
    """Returns the settable fields of a config dataclass with their annotations, in order.

    Example:
      >>> from jgrpo.config import MeshConfig
      >>> list(fields(MeshConfig))
      ['replica', 'fsdp', 'expert', 'tensor']
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(cls)
        if field.name not in NOT_SETTABLE
    }


def plain(annotation: Any) -> Any:
    """Returns an annotation without its range."""
    return typing.get_args(annotation)[0] if _is(annotation, Annotated) else annotation


def bounds(annotation: Any) -> tuple[Any, ...]:
    """Returns the range marks of an annotation, such as `Ge(1)`."""
    return typing.get_args(annotation)[1:] if _is(annotation, Annotated) else ()


def section(annotation: Any) -> type | None:
    """Returns the dataclass that an annotation names, or None."""
    bare = plain(annotation)
    return bare if isinstance(bare, type) and dataclasses.is_dataclass(bare) else None


def item(annotation: Any) -> Any | None:
    """Returns the annotation of the items of a list setting, or None for anything else."""
    bare = plain(annotation)
    return typing.get_args(bare)[0] if typing.get_origin(bare) is tuple else None


def entry(annotation: Any) -> Any | None:
    """Returns the annotation of the values of a free mapping, or None for anything else."""
    bare = plain(annotation)
    origin = typing.get_origin(bare)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    return typing.get_args(bare)[1] if is_mapping else None


def choices(annotation: Any) -> tuple[str, ...]:
    """Returns the words that a setting chooses from; empty if it is not a choice."""
    bare = plain(annotation)
    return typing.get_args(bare) if _is(bare, Literal) else ()


def at(root: type, key: Iterable[str]) -> Any:
    """Returns the annotation of a key path, or that of the deepest part the schema describes."""
    here: Any = root
    for name in key:
        if (cls := section(here)) is not None:
            if name not in fields(cls):
                return here
            here = fields(cls)[name]
        elif (inner := item(here)) is not None or (inner := entry(here)) is not None:
            here = inner
        else:
            return here
    return here


def allowed(annotation: Any) -> str:
    """Says what a setting may be.

    Example:
      >>> from typing import Annotated, Literal
      >>> from annotated_types import Ge, Le
      >>> allowed(Annotated[int, Ge(1)])
      'a whole number of at least 1'
      >>> allowed(Annotated[float, Ge(0.0), Le(1.0)])
      'a number of at least 0 and at most 1'
      >>> allowed(Literal["constant", "cosine"])
      "one of 'constant', 'cosine'"
    """
    bare, limits = plain(annotation), _limits(bounds(annotation))
    if (cls := section(bare)) is not None:
        return f"a mapping with the keys {', '.join(fields(cls))}"
    if (inner := item(bare)) is not None:
        return f"a list, each item {allowed(inner)}"
    if words := choices(bare):
        return "one of " + ", ".join(repr(word) for word in words)
    if typing.get_origin(bare) in (Union, types.UnionType):
        return _listing([allowed(option) for option in typing.get_args(bare)])
    if (inner := entry(bare)) is not None:
        return f"a mapping, each value {allowed(inner)}"
    return _BASIC[bare] + (f" {limits}" if limits else "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Says which known name was probably meant: `; did you mean 'lr'?`, or nothing.

    Example:
      >>> suggestion("schedul", ["lr", "schedule"])
      "; did you mean 'schedule'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value: Any) -> str:
    """Writes a value as an error shows it: as in YAML, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is(annotation: Any, kind: Any) -> bool:
    return typing.get_origin(annotation) is kind


def _limits(marks: tuple[Any, ...]) -> str:
    words = []
    for mark in marks:
        match mark:
            case Ge(ge=limit):
                words.append(f"of at least {limit:g}")
            case Gt(gt=limit):
                words.append(f"above {limit:g}")
            case Le(le=limit):
                words.append(f"at most {limit:g}")
            case Lt(lt=limit):
                words.append(f"below {limit:g}")
    return " and ".join(words)


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]
