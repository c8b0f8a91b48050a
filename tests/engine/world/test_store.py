"""world.sqlite: commits, kills, and files that cannot be used."""

import fcntl
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from engine.config.load import load
from engine.core.seams import Seams
from engine.core.versions import Versions
from engine.errors import ConfigError, RunError
from engine.evals.recorded import Evaluations
from engine.rundir.layout import RunDir
from engine.rundir.rows import locks_work
from engine.scripted import ConstantScorer, ConstantUser
from engine.types import EpisodeGroup
from engine.world.offline import OfflineWorld
from engine.world.store import MAPPING_FORMAT, EntryStore, MappingRow, open_store
from tests.engine.core.test_episode import DONE, ORDER, Letters, Lines
from tests.parts.children import python
from tests.parts.worlds import shop


def row(number: int, **changes: Any) -> MappingRow:
    """An entry."""
    return MappingRow("task-1", "", "tool", f'{{"n":{number}}}', "{}", 1, "simulated", None)._replace(**changes)


async def reopened(path: Path) -> list[MappingRow]:
    """What a new process would find."""
    async with open_store(path) as store:
        return await store.load("task-1")


async def test_entries_are_there_after_closing(tmp_path: Path) -> None:
    """Closing commits; the first entry of a key wins; other tasks are not loaded."""
    path = tmp_path / "world.sqlite"
    async with open_store(path) as store:
        store.put(row(1))
        store.put(row(1, content="changed"))
        store.put(row(2, task="task-2"))
        assert repr(store) == f"<EntryStore {path} [0 committed, 3 pending]>"
    assert await reopened(path) == [row(1)]


async def test_concurrent_flushes_share_a_commit(tmp_path: Path) -> None:
    """Many writers of frames that flush at once cost two transactions at most, not one each."""
    statements: list[str] = []
    async with open_store(tmp_path / "world.sqlite") as store:
        store._connection.set_trace_callback(statements.append)

        async def frame(number: int) -> None:
            store.put(row(number))
            await store.flush()

        async with anyio.create_task_group() as tg:
            for number in range(50):
                tg.start_soon(frame, number)
        assert store.pending == 0
    assert statements.count("COMMIT") <= 2
    assert len(await reopened(tmp_path / "world.sqlite")) == 50


def test_the_answers_of_an_evaluation_are_committed_before_its_frames(tmp_path: Path) -> None:
    """Whoever emits a group flushes first: evaluations no less than training."""
    run, versions, written = RunDir(tmp_path), Versions(slots=1), []
    run.eval.mkdir()
    versions.flip(0)
    tasks = [shop(id=f"shop-{number}", split="validation") for number in range(3)]
    parts = {"policy": Lines(ORDER, DONE), "user": ConstantUser(), "scorer": ConstantScorer(), "chat": Letters()}

    async def measured() -> None:
        async with open_store(run.world) as store:
            world = OfflineWorld(store)

            async def write(group: EpisodeGroup) -> EpisodeGroup:
                pending = [row for row in store._pending if row.task == group.task_id]
                written.append((group.task_id, len(group.episodes[0].events), pending))
                return group

            evaluations = await anyio.to_thread.run_sync(
                lambda: Evaluations(
                    run=run,
                    config=load(None, ["limits.completion_tokens=500"]).config,
                    tasks=tasks,
                    seams=Seams(world=world, clock=anyio.current_time, **parts),
                    adapters=SimpleNamespace(run_id="run", versions=versions),
                    writer=SimpleNamespace(write=write),
                    flush=world.flush,
                    live=lambda _: None,
                )
            )
            await evaluations.measure("validation", 0)
            assert store.tasks == {task.id for task in tasks}

    anyio.run(measured)
    assert sorted(written) == [(task.id, 2, []) for task in tasks]


async def test_a_cancelled_flush_loses_nothing(tmp_path: Path) -> None:
    """A flush that is cancelled before or in the commit leaves its entries for the next one."""
    async with open_store(tmp_path / "world.sqlite") as store:
        store.put(row(1))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.flush()
        await store.flush()
        assert store.pending == 0
    assert await reopened(tmp_path / "world.sqlite") == [row(1)]


async def test_a_failed_commit_keeps_the_entries(tmp_path: Path) -> None:
    """A full or read-only disk ends the run with the file and the remedy; nothing is forgotten meanwhile."""
    async with open_store(tmp_path / "world.sqlite") as store:
        await anyio.to_thread.run_sync(store._connection.execute, "PRAGMA query_only=ON")
        store.put(row(1))
        with pytest.raises(RunError, match=r"world\.sqlite: .*readonly.*resume the run"):
            await store.flush()
        await anyio.to_thread.run_sync(store._connection.execute, "PRAGMA query_only=OFF")
        await store.flush()
        assert (store.pending, await store.load("task-1")) == (0, [row(1)])


def test_flushed_entries_survive_a_kill(tmp_path: Path) -> None:
    """SIGKILL right after a flush: everything flushed is there, and the file opens."""
    script = f"""
import anyio, os, signal
from pathlib import Path
from engine.world.store import MappingRow, open_store
async def main():
    async with open_store(Path({str(tmp_path / "world.sqlite")!r})) as store:
        for number in range(3):
            store.put(MappingRow("task-1", "", "tool", '{{"n":%d}}' % number, "{{}}", 1, "simulated", None))
        await store.flush()
        store.put(MappingRow("task-1", "", "tool", "lost", "{{}}", 1, "simulated", None))
        os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert anyio.run(reopened, tmp_path / "world.sqlite") == [row(0), row(1), row(2)]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            f"PRAGMA user_version={MAPPING_FORMAT + 1}",
            f"format {MAPPING_FORMAT + 1}, this version reads {MAPPING_FORMAT}",
        ),
        ("PRAGMA application_id=7", "not a world database"),
    ],
)
async def test_a_database_of_another_kind_is_refused(tmp_path: Path, script: str, reason: str) -> None:
    """An unknown format or somebody else's database: a sentence with the remedy, the file left as it was."""
    path = tmp_path / "world.sqlite"
    async with open_store(path) as store:
        await anyio.to_thread.run_sync(store._connection.execute, script)
    with pytest.raises(ConfigError, match=reason):
        await reopened(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Garbage under the name is named."""
    path = tmp_path / "world.sqlite"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(ConfigError, match=r"world\.sqlite: file is not a database"):
        anyio.run(reopened, path)


def test_a_database_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that holds the database exclusively is named as locked, not waited for for ever."""
    path = tmp_path / "world.sqlite"
    anyio.run(reopened, path)
    connection = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout, **more: connection(path, timeout=0.1, **more))
    script = f"""
import sqlite3, sys
connection = sqlite3.connect({str(path)!r})
connection.execute("PRAGMA locking_mode=EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""
    with python("-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="locked"):
            anyio.run(reopened, path)


def test_a_filesystem_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that nobody else sees, and locks that fail: both refused with the remedy; the probe leaves no file."""
    assert locks_work(tmp_path)
    monkeypatch.setattr(fcntl, "lockf", lambda *_: None)
    with pytest.raises(
        ConfigError, match="file locks do not work on this filesystem; put the run directory on a local"
    ):
        anyio.run(reopened, tmp_path / "world.sqlite")

    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    assert not locks_work(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_load_asks_only_for_tasks_that_have_entries(tmp_path: Path) -> None:
    """A task without entries costs no query."""
    statements: list[str] = []
    async with open_store(tmp_path / "world.sqlite") as store:
        assert isinstance(store, EntryStore)
        store._connection.set_trace_callback(statements.append)
        assert await store.load("task-1") == []
    assert statements == []
