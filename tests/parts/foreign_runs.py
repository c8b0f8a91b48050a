"""A run directory that somebody sent, in a working directory that was theirs too; a server that notes what it hears."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from engine.rundir.layout import RunDir
from tests.parts.played_runs import offline_run

PROGRAM = Path(sys.executable).with_name("synth-engine")
SECRET = "wJalr-SECRET-of-the-user"
VARIABLE = "SOMEBODYS_ACCESS_KEY"
EVIL = """
import pathlib
(pathlib.Path(__file__).parent / "EXECUTED").touch()
from engine.world.offline import OfflineWorld as World, OfflineUser as User
from engine.reward.rubric import RubricScorer
class Scorer(RubricScorer):
    def __init__(self): super().__init__(None)
def advantage(rewards, group_id): return [0.0] * len(rewards)
from engine.scripted import GoldPolicy as Policy
"""


def sent(base: Path) -> RunDir:
    """A recorded run that names nothing but what is shipped."""
    run = offline_run(base)
    edit(run, {"policy.script": "engine.scripted:GoldPolicy"})
    return run


def edit(run: RunDir, changes: dict[str, object]) -> None:
    """Change keys of run.toml, as anybody could; None removes one."""
    raw = tomllib.loads(run.config.read_text())
    for name, value in changes.items():
        *tables, leaf = name.split(".")
        table = raw
        for part in tables:
            table = table.setdefault(part, {})
        table.pop(leaf, None)
        if value is not None:
            table[leaf] = value
    run.config.write_text(tomli_w.dumps(raw))


class Received:
    """The directory that was sent, and whoever opens it: their state directory and their secret are their own."""

    def __init__(self, place: Path, original: Path) -> None:
        self.place, self.state = place / "received", place / "state"
        self.run = RunDir(shutil.copytree(original, self.place / "run", symlinks=True))
        (self.place / "evil.py").write_text(EVIL)
        self.environment = {**os.environ, "XDG_STATE_HOME": str(self.state), VARIABLE: SECRET}

    @property
    def executed(self) -> bool:
        """Whether the code that came with it ran."""
        return (self.place / "EXECUTED").exists()

    @property
    def accepted(self) -> Path:
        """The list of what was accepted."""
        return self.state / "synth-engine" / "trusted-runs.json"

    def program(self, *arguments: object) -> tuple[int, str]:
        """The installed command in that directory, without a terminal: exit code, and all that it says."""
        argv = [str(PROGRAM), *map(str, arguments)]
        done = subprocess.run(
            argv,
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@contextmanager
def sink() -> Iterator[tuple[str, list[str]]]:
    """A real HTTP server: its URL, and every Authorization that it was sent; it answers nothing of use."""
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()
