"""The processes that run one sweep, one on each host, and how they keep in step.

Each starts the runs of its own host. They tell each other what they start and how it ended through
jax's coordination service, since the devices belong to the runs; what a folder says, only the first
reads. The runs meet at an address of their own, which the first chooses.
"""

import signal
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TypeVar

import jax

from jgrpo.parallel import hosts, service
from jgrpo.parallel.distributed import VARIABLES, initialize

_ENDED = "jgrpo/sweep/ended/"
_SILENT_S = 100
_T = TypeVar("_T")


class Parents:
    """The processes of one sweep, while it is entered; a process that is alone just goes on.

    Whoever calls a method, all must, in the same order.

    Attributes:
      index: number of this one, from 0.
      count: how many there are.
    """

    def __init__(self, joins: bool) -> None:
        """Nobody is asked yet.

        Args:
          joins: whether to look for other processes (`parallel.distributed.initialize`).
        """
        self.index, self.count = 0, 1
        self._joins = joins
        self._channel = service.Channel("sweep", _check_others)

    def __enter__(self) -> "Parents":
        if not self._joins:
            return self
        initialize(heartbeat_s=_SILENT_S)
        if not jax.distributed.is_initialized():
            return self
        self.index, self.count = service.process(), service.processes()
        if threading.current_thread() is threading.main_thread():
            # The service takes SIGTERM for itself; until a run is there to save, it ends this.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        if self.count == 1:  # its run may need the port
            jax.distributed.shutdown()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.count == 1:
            return
        if error is not None:
            service.say(_ENDED, self.index, f"{error}"[:500])
        jax.distributed.shutdown()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.index == 0

    @property
    def suffix(self) -> str:
        """What is added to names of files that every process has: nothing for the first."""
        return f".{self.index}" if self.index else ""

    def exchange(self, message: str) -> list[str]:
        """What every process has to say, in their order.

        Raises:
          ValueError: if another process has ended by an error; says which, and why.
        """
        if self.count == 1:
            return [message]
        return self._channel.exchange(message)

    def from_first(self, find: Callable[[], _T]) -> _T:
        """What the first process finds, as JSON makes it, in all; the others do not look."""
        if self.count == 1:
            return find()
        return self._channel.exchange(find() if self.is_first else None)[0]

    def check_alike(self, what: str) -> None:
        """Makes sure that all were started to do the same.

        Raises:
          ValueError: in all, naming one that was not.
        """
        hosts.check_alike(self.exchange(what), "sweep")

    def meeting(self) -> Mapping[str, str]:
        """What the environment of a run has to say so that the processes of the run meet."""
        if self.count == 1:
            return {}
        host = service.address().rpartition(":")[0]
        address = f"{host}:{self.from_first(_free_port)}"
        return dict(zip(VARIABLES, (address, str(self.count), str(self.index)), strict=True))


def _check_others() -> None:
    for process, reason in service.said(_ENDED).items():
        raise ValueError(f"process {process} has ended the sweep: {reason}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
