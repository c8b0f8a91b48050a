"""Replies that both scripted servers give: JSON, errors in SGLang's shape, and what a faulty server answers."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from engine.scripted.faults import ServerFault


def json_reply(value: Any, status: int = 200) -> web.Response:
    """A JSON body."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def error_reply(status: int, message: str) -> web.Response:
    """`{"error":{"message":...}}`."""
    return json_reply({"error": {"message": message}}, status)


def failure(request: web.Request, fault: ServerFault) -> web.Response | None:
    """The answer to a request that fails, or None where the fault is in a reply; a reset closes the connection."""
    if fault is ServerFault.ERROR:
        return error_reply(500, "Internal error")
    if fault in (ServerFault.BUSY, ServerFault.DOWN):
        return error_reply(503, "The request queue is full." if fault is ServerFault.BUSY else "Down for maintenance.")
    if fault is ServerFault.LIMITED:
        limited = error_reply(429, "Rate limit reached.")
        limited.headers["Retry-After"] = "1"
        return limited
    if fault is ServerFault.GARBAGE:
        return web.Response(text="<html>gateway</html>")
    if fault is ServerFault.RESET:
        assert request.transport is not None
        request.transport.close()
        return web.Response()
    return None
