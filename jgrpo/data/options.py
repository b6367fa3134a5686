"""The settings of a task: the fields of one frozen dataclass, checked against `data.options`."""

import dataclasses
import json
from typing import Any, TypeVar

import pydantic

from jgrpo.config import DataConfig
from jgrpo.config_schema import suggestion

Options = TypeVar("Options", bound=Any)


def read_options(cls: type[Options], cfg: DataConfig) -> Options:
    """The settings of a task, from `data.options`.

    Args:
      cls: the dataclass of its settings.
      cfg: the section `data`.

    Raises:
      ValueError: naming the key, for an unknown option or a wrong value.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in cfg.options:
        if name not in known:
            listed = f"known: {', '.join(known)}" if known else f"task {cfg.task!r} has none"
            hint = suggestion(name, known)
            raise ValueError(f"data.options.{name}: unknown option{hint} ({listed})")
    try:
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(dict(cfg.options)), strict=True)
    except pydantic.ValidationError as error:
        problems = [
            f"data.options{''.join(f'.{part}' for part in item['loc'])}: {item['msg']}, "
            f"got {item['input']!r}"
            for item in error.errors()
        ]
        raise ValueError(f"task {cfg.task!r}: " + "; ".join(problems)) from error
