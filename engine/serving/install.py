"""Making SGLang's virtual environment, and looking into one."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import orjson

from engine.config.environment import child_environment
from engine.errors import RunError
from engine.rundir.layout import read_json, write_json
from engine.serving.sglang import STAND_INS, VERSION, interpreter, server_environment

_REQUIREMENTS = STAND_INS / "requirements.txt"
_MARKER = "synth-engine.json"
_CHECK_S = 300.0
_CHECK = """
import json, sys, torch, importlib.metadata
import sglang.srt.entrypoints.http_server
facts = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.cuda.is_available()}
print(json.dumps(facts | {"sglang": importlib.metadata.version("sglang")}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFacts:
    """What an environment says of itself."""

    python: str
    sglang: str
    torch: str
    cuda: bool
    """Whether its torch sees a GPU."""


def installed(directory: Path, *, cpu: bool) -> bool:
    """Whether `install` ended there, for this release and these packages."""
    made_of = read_json(directory / _MARKER) or {}
    return interpreter(directory).exists() and made_of.items() >= _identity(cpu=cpu).items()


def install(directory: Path, say: Callable[[str], None], *, cpu: bool) -> EnvironmentFacts:
    """Make, or finish, SGLang's environment in `directory`; pip's own output goes to the terminal.

    Raises RunError that names the step that failed and the remedy."""
    say(f"virtual environment in {directory}")
    if not interpreter(directory).exists():
        try:
            venv.create(directory, with_pip=True)
        except subprocess.CalledProcessError as error:
            raise RunError(
                f"no virtual environment could be made in {directory}: {error}; Debian and Ubuntu need python3-venv"
            ) from error
    for what, arguments in _steps(cpu=cpu):
        say(what)
        command = [str(interpreter(directory)), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        if (code := subprocess.run(command, env=child_environment(), check=False).returncode) != 0:
            raise RunError(
                f"installing SGLang failed with pip's exit code {code} ({what}); what it said stands above. Run the "
                "command again: what is there already is kept"
            )
    say("a look whether its server can be imported")
    facts = inspect_environment(directory, cpu=cpu)
    write_json(directory / _MARKER, _identity(cpu=cpu))
    return facts


def inspect_environment(directory: Path, *, cpu: bool) -> EnvironmentFacts:
    """Import the server in the environment of `directory`, and tell what it is made of.

    Raises RunError with the last line of what went wrong."""
    python = interpreter(directory)
    if not python.exists():
        raise RunError(f"there is no SGLang environment in {directory}: `synth-engine install-sglang` makes one")
    try:
        asked = subprocess.run(
            [str(python), "-c", _CHECK],
            env=server_environment(cpu=cpu, threads=1),
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{python} needed more than {_CHECK_S:g} s to import SGLang") from error
    lines = (asked.stdout if asked.returncode == 0 else asked.stderr).strip().splitlines() or ["it said nothing"]
    if asked.returncode != 0:
        raise RunError(f"{python} cannot import SGLang's server: {lines[-1]}")
    return EnvironmentFacts(**orjson.loads(lines[-1]))


def _steps(*, cpu: bool) -> list[tuple[str, list[str]]]:
    if not cpu:
        return [("SGLang and its packages, about 5 GB to download", [f"sglang=={VERSION}"])]
    packages = _REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    torch = next(line for line in packages if line.startswith("torch=="))
    # torch's own needs depend on the build that pip is offered; everybody else's are in the list.
    return [
        (f"{torch}: the CPU build where one is offered", [torch]),
        ("SGLang and its packages, about 0.5 GB to download", ["--no-deps", "-r", str(_REQUIREMENTS)]),
    ]


def _identity(*, cpu: bool) -> dict[str, str]:
    """What an environment was made of; a newer list of packages is installed again."""
    packages = sha256(_REQUIREMENTS.read_bytes()).hexdigest() if cpu else ""
    return {"sglang": VERSION, "packages": packages, "python": sys.version.split()[0]}
