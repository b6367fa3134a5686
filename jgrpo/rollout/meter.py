"""What sampling costs."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass(kw_only=True)
class Meter:
    """What sampling has cost so far; two add up.

    Attributes:
      prefill_s: seconds until the first prompts were read and first tokens drawn.
      decode_s: seconds in decode steps and in reading further prompts.
      host_s: seconds between them: stop strings, bookkeeping.
      drawn: tokens that belong to a completion.
      slot_steps: tokens that the slots could have drawn in the steps made.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    host_s: float = 0.0
    drawn: int = 0
    slot_steps: int = 0

    def __add__(self, other: "Meter") -> "Meter":
        both = dataclasses.asdict(other)
        return Meter(**{name: both[name] + value for name, value in vars(self).items()})

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds of the block to this attribute."""
        begin = time.perf_counter()
        yield
        setattr(self, part, getattr(self, part) + time.perf_counter() - begin)

    @property
    def waste(self) -> float:
        """Share of the slots' steps that drew nothing that was kept."""
        return 1.0 - self.drawn / max(self.slot_steps, 1)
