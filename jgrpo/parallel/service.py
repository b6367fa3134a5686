"""jax's coordination service: how processes hear of each other without using a device.

`jax.distributed` starts it and does not hand it out.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

_PATIENCE_MS = 1000


def say(folder: str, process: int, text: str) -> None:
    """Tells all processes something under a key, in the place of what this one said there before.

    Args:
      folder: the key, with a slash at its end.
      process: the number of this one.
      text: what it says.
    """
    _client().key_value_set(f"{folder}{process}", text, allow_overwrite=True)


def said(folder: str) -> dict[int, str]:
    """What processes have said under a key so far, by their number."""
    return {int(key.rpartition("/")[2]): text for key, text in _client().key_value_dir_get(folder)}


class Channel:
    """What all processes tell each other in turn, whatever the devices are busy with meanwhile.

    Whoever says something, all must, in the same order.
    """

    def __init__(self, name: str, check: Callable[[], None] = lambda: None) -> None:
        """Nothing has been said yet.

        Args:
          name: of what they talk about; no other channel has it.
          check: called every second in which another process has not said anything; may raise to
            give up.
        """
        self._name, self._check, self._said = name, check, 0

    def exchange(self, message: Any) -> list[Any]:
        """What every process has to say, in their order, as JSON makes it; waits for the last.

        Raises:
          jax.errors.JaxRuntimeError: if the service is gone.
        """
        self._said += 1
        say(self._folder(self._said), process(), json.dumps(message))
        found = [self._heard(other) for other in range(processes())]
        if self._said > 1:  # whoever has said this has heard all that was said before it
            _client().key_value_delete(f"{self._folder(self._said - 1)}{process()}")
        return found

    def _folder(self, number: int) -> str:
        return f"jgrpo/{self._name}/{number}/"

    def _heard(self, other: int) -> Any:
        """What a process says next."""
        key = f"{self._folder(self._said)}{other}"
        while True:
            try:
                return json.loads(_client().blocking_key_value_get(key, _PATIENCE_MS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            self._check()


def address() -> str:
    """Where process 0 serves it, as `host:port`."""
    return distributed.global_state.coordinator_address or ""


def process() -> int:
    """Number of this process, from 0."""
    return distributed.global_state.process_id


def processes() -> int:
    """How many processes have joined."""
    return distributed.global_state.num_processes


def _client() -> Any:
    return distributed.global_state.client
