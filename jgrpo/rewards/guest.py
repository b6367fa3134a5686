"""What runs inside bubblewrap: executes one program and calls its functions, or lends it ours.

Lines of JSON go in and out. This code shares a process with the program, which may therefore send
any line in its place; the other side (`bubblewrap.py`) takes a line for nothing but data. Standard
library and `plain.py` only, the two files that are there.
"""

import json
import os
import random
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from jgrpo.rewards.plain import decode, encode

_LONGEST = 1 << 30  # what comes from the trusted side has been measured there


def main() -> None:
    """Serves until the input ends. The first argument is JSON: the limits by name of `resource`."""
    for name, most in json.loads(sys.argv[1]).items():
        resource.setrlimit(getattr(resource, name), (most, most))
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    random.seed(0)
    _say(replies, ready=True)
    names: dict[str, Any] = {"__name__": "__main__"}
    for line in requests:
        request = json.loads(line)
        try:
            if "source" in request:
                for name in request["functions"]:
                    names[name] = _lent(name, requests, replies)
                exec(compile(request["source"], "program.py", "exec"), names)
                value = None
            else:
                value = names[request["call"]](*_read(request, "arguments"), **_named(request))
            answer: Mapping[str, Any] = {"value": json.dumps(encode(value))}
        except BaseException as error:  # The boundary: whatever a program raises is told.
            answer = {"error": type(error).__name__, "detail": _text(error)}
        _say(replies, **answer)


def _lent(name: str, requests: TextIO, replies: TextIO) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        _say(
            replies,
            call=name,
            arguments=json.dumps(encode(list(arguments))),
            named=json.dumps(encode(named)),
        )
        answer = json.loads(requests.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return _read(answer, "value")

    return call


def _read(message: Mapping[str, Any], key: str) -> Any:
    return decode(message[key], _LONGEST)


def _named(message: Mapping[str, Any]) -> dict[str, Any]:
    return _read(message, "named")


def _text(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:  # its text is the program's too
        return ""


def _say(replies: TextIO, **message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
