"""Further cases of what quicker ones show: not in the suite, but in `pytest -m slow`."""

from typing import Any

import pytest


def by_hand(*case: Any) -> Any:
    """A case of `pytest.mark.parametrize` that only runs by hand."""
    return pytest.param(*case, marks=pytest.mark.slow)
