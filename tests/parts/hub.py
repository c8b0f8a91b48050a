"""A small model hub on a real socket: the routes that the hub library asks for a download, from files in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1

from aiohttp import web
from anyio.from_thread import start_blocking_portal

from tests.parts.llm_parts import listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One model, `acme/tiny`, with the branch `main`; `acme/gated` wants a login; nothing else is there."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    """What was requested, such as "GET config.json"."""
    broken: str = ""
    """The hub loses the connection in the middle of this file."""

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application()
        application.router.add_get("/api/models/{owner}/{name}/revision/{revision}", self._revision)
        application.router.add_get("/api/models/{owner}/{name}/tree/{revision}", self._tree)
        application.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.+}", self._file)
        return application

    async def _revision(self, request: web.Request) -> web.Response:
        name, revision = request.match_info["name"], request.match_info["revision"]
        self.asked.append(f"revision {revision}")
        if name == "gated":
            return _refused(403, "GatedRepo")
        if name != "tiny":
            return _refused(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return _refused(404, "RevisionNotFound")
        return web.json_response({"id": "acme/tiny", "sha": COMMIT, "tags": [], "siblings": []})

    async def _tree(self, request: web.Request) -> web.Response:
        self.asked.append(f"tree {request.match_info['revision']}")
        return web.json_response(
            [
                {"type": "file", "path": path, "size": len(content), "oid": sha1(content).hexdigest()}
                for path, content in self.files.items()
            ]
        )

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.asked.append(f"{request.method} {path}")
        content = self.files[path]
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if path == self.broken and request.method == "GET":
            cut = web.StreamResponse(headers={**headers, "Content-Length": str(len(content))})
            await cut.prepare(request)
            assert request.transport is not None
            request.transport.close()
            return cut
        return web.Response(body=content, headers=headers)


def _refused(status: int, code: str) -> web.Response:
    return web.Response(status=status, headers={"X-Error-Code": code})


@contextmanager
def serving_hub(hub: Hub) -> Iterator[str]:
    """The URL of a hub that runs in a thread of its own inside this block."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(hub.application())) as url,
    ):
        yield url
