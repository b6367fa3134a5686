"""Programs in Monty: an interpreter for a part of Python, written in Rust, in a process of its own.

It has no files, no network, no processes and no native code; a program can only compute. Each
program gets a fresh process, whose address space and processor time the kernel limits as well. Time
stands still, sleeping takes none, and random numbers start from one seed, so that a program does
the same thing every time. What Monty lacks (inheritance, `yield`, parts of the standard library)
fails as `unsupported`.
"""

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jgrpo.rewards.plain import (
    MAX_DEPTH,
    Call,
    Clock,
    Kind,
    Limits,
    Plain,
    ProgramError,
    decode,
    encoder,
)

if TYPE_CHECKING:
    import pydantic_monty

_MAX_HOST_CALLS = 100_000
# What the process itself takes beside the heap of the program.
_PROCESS_BYTES = 512 << 20
# How Monty says that it does not know a piece of syntax, and that a module is missing.
_NOT_YET = "does not yet support"
_LIMITS = ("TimeoutError", "MemoryError", "RecursionError")

_PRELUDE = f"""\
{inspect.getsource(encoder)}
jgrpo_encode = encoder({MAX_DEPTH})
from json import dumps as jgrpo_dumps
None
"""


@contextlib.contextmanager
def program(source: str, limits: Limits) -> Iterator[Call]:
    """Runs a program and keeps it, so that its functions can be called while the context is open.

    Args:
      source: the program; it need not be trusted.
      limits: what it may use up.

    Returns:
      A context of the function that calls; it raises ProgramError as this one does.

    Raises:
      ProgramError: if the program does not run to its end.
    """
    with _session(limits) as session:
        clock = Clock(limits)
        _feed(session, _PRELUDE, limits)
        # The value of a last line would be brought over here, and it may be huge.
        clock.run(lambda: _feed(session, f"{source}\n\nNone\n", limits))

        def call(name: str, arguments: Sequence[Plain], named: Mapping[str, Plain]) -> Plain:
            # An f-string is a str whatever the program has done to the names in it, and its slice
            # bounds what comes over.
            code = (
                f'f"{{jgrpo_dumps(jgrpo_encode({name}(*jgrpo_arguments, **jgrpo_named)))}}"'
                f"[: {limits.output_chars + 1}]"
            )
            inputs = {"jgrpo_arguments": list(arguments), "jgrpo_named": dict(named)}
            line = clock.run(lambda: _feed(session, code, limits, inputs=inputs))
            return decode(line, limits.output_chars)

        yield call


def run(source: str, functions: Mapping[str, Callable[..., Plain]], limits: Limits) -> None:
    """Runs a program to its end; some of its names are functions of this process.

    Args:
      source: the program.
      functions: by a name that is no builtin; they take and return plain data.
      limits: what the program may use up, not counting the time of those functions.

    Raises:
      ProgramError: if it does not run to its end.
    """
    with _session(limits) as session:
        _feed(session, f"{source}\n\nNone\n", limits, external_lookup=dict(functions))


@contextlib.contextmanager
def _session(limits: Limits) -> Iterator["pydantic_monty.MontySession"]:
    import pydantic_monty

    with (
        pydantic_monty.Monty(max_processes=1) as pool,
        pool.checkout(
            limits={
                "max_feed_duration_secs": limits.time_s,
                "max_memory": limits.memory_bytes,
                "max_suspensions": _MAX_HOST_CALLS,
            },
            os_policy={
                "datetime": datetime(2025, 1, 1, tzinfo=UTC),
                "sleep": "zero",
                "random_start": {"seed": 0},
            },
            assert_message_annotations=False,
            external_modules={"string": _string_module()},
        ) as session,
    ):
        _limit_process(session.worker_pid, limits)
        yield session


def _string_module() -> "pydantic_monty.ExternalModule":
    """The constants of `string`, which Monty lacks and tests use."""
    import string

    import pydantic_monty

    values = {name: value for name, value in vars(string).items() if isinstance(value, str)}
    return pydantic_monty.ExternalModule(
        {name: value for name, value in values.items() if not name.startswith("_")}
    )


def _limit_process(pid: int | None, limits: Limits) -> None:
    if pid is None or sys.platform != "linux":
        return  # its own limits stay
    import resource

    wanted = {
        resource.RLIMIT_AS: limits.memory_bytes + _PROCESS_BYTES,
        resource.RLIMIT_CPU: math.ceil(2 * limits.time_s) + 2,
    }
    for what, most in wanted.items():
        _, hard = resource.prlimit(pid, what)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.prlimit(pid, what, (most, most))


def _feed(session: "pydantic_monty.MontySession", code: str, limits: Limits, **more: Any) -> Any:
    import pydantic_monty

    prints = pydantic_monty.CollectString(max_bytes=limits.output_chars)
    try:
        return session.feed_run(code, print_callback=prints, **more)
    except pydantic_monty.MontyError as error:
        raise ProgramError(_kind(error), str(error)) from error
    except UnicodeEncodeError as error:
        raise ProgramError("raised", "half of a surrogate pair") from error


def _kind(error: "pydantic_monty.MontyError") -> Kind:
    import pydantic_monty

    if isinstance(error, pydantic_monty.MontyCrashedError):
        return "limit"
    name, message = type(error.exception()).__name__, str(error)
    if name in _LIMITS:
        return "limit"
    if name == "NotImplementedError" and _NOT_YET in message:
        return "unsupported"
    if name in ("ModuleNotFoundError", "ImportError"):
        module = message.rpartition("'")[0].rpartition("'")[2].partition(".")[0]
        return "unsupported" if module in sys.stdlib_module_names else "raised"
    return "raised"
