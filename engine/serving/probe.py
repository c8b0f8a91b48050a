"""Whether a server answers: one short GET, from a process without an event loop."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from engine.errors import RunError

_READY_S = 0.5
_ANSWER_S = 5.0
_ASKED = ("/v1/models", "/health")
"""What a server of language models answers without computing anything."""


def server_is_ready(url: str) -> bool:
    """Whether an SGLang, or an embedded server, answers GET /ready with 200."""
    try:
        return _status(url, "/ready", {}, _READY_S) == 200
    except (OSError, HTTPException):
        return False


def answers(url: str, api_key: str | None) -> str:
    """What a server of language models answered, in words.

    Raises RunError if it does not answer, or refuses the key."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    seen = []
    for path in _ASKED:
        try:
            status = _status(url, path, headers, _ANSWER_S)
        except (OSError, HTTPException) as error:
            raise RunError(
                f"{url} does not answer ({error or type(error).__name__}): start it, or correct the URL"
            ) from error
        if status == 200:
            return f"{url} answers GET {path}"
        if status in (401, 403):
            raise RunError(f"{url} refuses {'this API key' if api_key else 'a request without an API key'} ({status})")
        seen.append(f"GET {path} with {status}")
    raise RunError(f"{url} answers {' and '.join(seen)}: it is no server of language models, or its URL ends elsewhere")


def _status(url: str, path: str, headers: dict[str, str], limit_s: float) -> int:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=limit_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()
