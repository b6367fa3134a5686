"""The methods: one row per name, one choice per slot, and the constants those choices read.

The rows stand in one file per family. What a row is stands in `jgrpo/algo/row.py`.
"""

import dataclasses
from collections.abc import Mapping

from jgrpo.algo.checks import refuse, suggestion
from jgrpo.algo.methods import (
    asked,
    classic,
    coupled,
    credit,
    guided,
    judged,
    preference,
    ratios,
    replayed,
    rewards,
    rounds,
)
from jgrpo.algo.row import (
    FIELDS,
    SETTINGS,
    SLOTS,
    TEXTS,
    Constant,
    Method,
    field_problems,
)

__all__ = [
    "FIELDS",
    "METHODS",
    "SETTINGS",
    "SLOTS",
    "TEXTS",
    "Constant",
    "Method",
    "field_problems",
    "method",
]


def method(name: str, /, **overrides: Constant) -> Method:
    """A row of the table, with slots or constants changed.

    Args:
      name: a key of `METHODS`.
      **overrides: fields of `Method` except its texts. Values that differ from the row's are added
        to `departs`, so that a log never shows the paper's name without them.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown name or field, or a value out of range, saying what exists.

    Example:
      >>> method("gspo", clip_low=1e-3).clip_low
      0.001
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{suggestion(name, METHODS)}")
    row = METHODS[name]
    for field in overrides:
        if field not in SETTINGS:
            raise ValueError(
                f"method {name!r}: unknown field {field!r}{suggestion(field, SETTINGS)}"
            )
    refuse(name, field_problems(dataclasses.asdict(row) | overrides))
    values = {f: FIELDS[f].kind(value) for f, value in overrides.items()}
    changed = {f: value for f, value in values.items() if value != getattr(row, f)}
    listed = ", ".join(f"{f}={value!r} (row: {getattr(row, f)!r})" for f, value in changed.items())
    departs = f"{row.departs} Overridden: {listed}." if changed else row.departs
    return dataclasses.replace(row, **values, departs=departs)


METHODS: Mapping[str, Method] = {
    **classic.ROWS,
    **ratios.ROWS,
    **credit.ROWS,
    **rewards.ROWS,
    **coupled.ROWS,
    **guided.ROWS,
    **rounds.ROWS,
    **preference.ROWS,
    **asked.ROWS,
    **judged.ROWS,
    **replayed.ROWS,
}
