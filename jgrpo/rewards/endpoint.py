"""A language model behind an OpenAI-compatible HTTP interface: timeouts, retries, a cache on disk.

Standard library only, since the worker processes of the rewards import this. A request that is in
the cache is never sent again, so a run that is continued gets the answers it had.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Messages: TypeAlias = Sequence[Mapping[str, str]]

MAX_REPLY_BYTES = 4 << 20
"""A longer reply is refused."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK = 1 << 16
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EndpointError(RuntimeError):
    """The model gave no answer that can be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model is asked, and with how much patience.

    Attributes:
      url: the address before `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
      model: the model's name there.
      max_tokens: longest answer.
      timeout_s: seconds without a byte after which a request is given up.
      deadline_s: seconds for an answer in all, tries and waits together.
      retries: further tries after a failure that may pass (busy, overloaded, connection lost).
      backoff_s: wait before the first further try; each wait is twice the one before, or as long
        as the server asks for.
      cache: folder of the answers so far; empty: none are kept.
      key_env: environment variable that holds the server's key; empty: none is sent.
    """

    url: str
    model: str
    max_tokens: int = 512
    timeout_s: float = 30.0
    deadline_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.5
    cache: str = ""
    key_env: str = ""

    def ask(self, messages: Messages) -> str:
        """The model's answer, at temperature 0.

        Args:
          messages: each with `role` and `content`.

        Raises:
          EndpointError: if there is none after all tries, within the deadline.
        """
        request = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        kept = _kept(self.cache, request)
        if kept is not None and (answer := _read(kept, request)) is not None:
            return answer
        answer = self._tries(json.dumps(request).encode())
        if kept is not None:
            _write(kept, {"request": request, "answer": answer})
        return answer

    def _tries(self, body: bytes) -> str:
        ends, wait, problem = time.monotonic() + self.deadline_s, self.backoff_s, ""
        for number in range(self.retries + 1):
            try:
                return self._once(body, ends)
            except urllib.error.HTTPError as error:
                with error:
                    detail = error.read(500).decode("utf-8", "replace")
                problem = f"status {error.code}: {detail}"
                if error.code not in _AGAIN:
                    break
                wait = max(wait, _asked_wait(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, _Unusable) as error:
                problem = f"{type(error).__name__}: {error}"
            if number == self.retries or time.monotonic() + wait >= ends:
                problem += f" (after {number + 1} tries)"
                break
            time.sleep(wait)
            wait *= 2
        raise EndpointError(f"{self.url}: {problem}")

    def _once(self, body: bytes, ends: float) -> str:
        left = ends - time.monotonic()
        if left <= 0:
            raise _Unusable("the deadline has passed")
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_env, '')}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, body, headers, method="POST")
        timeout = min(self.timeout_s, left)
        with _opener(self.url).open(request, timeout=timeout) as reply:
            data = bytearray()
            while part := reply.read1(_CHUNK):
                data += part
                if len(data) > MAX_REPLY_BYTES:
                    raise _Unusable(f"the reply has more than {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > ends:
                    raise _Unusable("the deadline has passed while the reply came")
        return _answer(bytes(data))


class _Unusable(ValueError):
    """A reply that is none, or too late."""


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Goes by the proxies of the environment, but not to reach this machine."""
    if urllib.parse.urlsplit(url).hostname in _LOOPBACK:
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()


def _answer(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _Unusable(f"no chat completion: {data[:200]!r}") from error
    if not isinstance(content, str):
        raise _Unusable(f"the message is no text: {content!r:.200}")
    return content


def _asked_wait(words: str | None) -> float:
    """Seconds that a `Retry-After` asks for; a date counts as none."""
    return float(words) if words is not None and words.strip().isdigit() else 0.0


def _kept(folder: str, request: Mapping[str, Any]) -> Path | None:
    """The file of a request: its name is the SHA-256 of all that the answer depends on."""
    if not folder:
        return None
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(folder).expanduser() / name[:2] / f"{name}.json"


def _read(path: Path, request: Mapping[str, Any]) -> str | None:
    """The answer in a file; None if there is none, or the file is damaged."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    usable = isinstance(found, dict) and found.get("request") == request
    answer = found.get("answer") if usable else None
    return answer if isinstance(answer, str) else None


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all: other processes read while this one writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new_")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(record, file)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
