"""What every test gets: the asyncio backend of anyio, a guard against calls that block the event loop, small disks."""

import argparse
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

# Hypothesis gives an example 200 ms and its making a second: time budgets, which a busy machine exceeds.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path} is not there")
    return Path(path).resolve()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where things are that are not shipped: real models, other projects' tasks."""
    parser.addoption(
        "--qwen-models",
        metavar="DIR",
        type=_existing,
        help="a directory with `qwen2.5` and `qwen3`: real models in Hugging Face format, of which only config.json, "
        "tokenizer and chat template are read",
    )
    parser.addoption(
        "--agenticqwen",
        metavar="FILE",
        type=_existing,
        help="a JSON array of tasks in the AgenticQwen format (not shipped): each is imported and played",
    )


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio, the loop the product runs on."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the list of accepted runs, of the tests and of the processes that they start, out of the user's own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail a test that blocks the event loop (invariant no-block)."""
    with blockbuster_ctx() as guard:
        yield guard


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk("256k")` is a file system of that size; called again, the same one with another."""
    path = tmp_path / "disk"
    with ExitStack() as mounted:

        def sized(size: str) -> Path:
            if path.exists():
                subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)
                return path
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("mounting a tmpfs needs privileges that this machine does not give")
            mounted.callback(subprocess.run, ["umount", str(path)], check=True)
            return path

        yield sized
