"""journal.sqlite: the first accepted reply is everybody's, what was put is seen, and no byte changes unnoticed."""

import hashlib
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from engine.errors import ConfigError, RunError
from engine.llm.journal import JOURNAL_FORMAT, Counts, Exchange, open_journal, read_journal

REQUEST = orjson.dumps({"messages": [{"role": "user", "content": "Which country is it? é"}], "schema": {}})


def subject(number: int) -> str:
    """A question's subject."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def exchange(number: int = 1, **changes: Any) -> Exchange:
    """An accepted exchange."""
    made = Exchange(subject(number), 0, "tool", "task-1", "sim", "m", REQUEST, f'{{"n":{number}}}', "", 120, 7)
    return made._replace(**changes)


async def kept(path: Path, *exchanges: Exchange) -> None:
    """A journal with these exchanges."""
    async with open_journal(path) as journal:
        for one in exchanges:
            journal.keep(one)


async def everything(path: Path) -> list[Exchange]:
    """What an audit reads."""
    async with read_journal(path) as journal:
        return [one async for one in journal.exchanges()]


async def looked_up(path: Path) -> Exchange | None:
    """What an asker finds."""
    async with read_journal(path) as journal:
        return await journal.find(subject(1))


async def checked(path: Path) -> Counts:
    """What there is, if it is sound."""
    async with read_journal(path) as journal:
        return await journal.check()


def altered(path: Path, column: str, value: Any, number: int = 1) -> None:
    """One field of one row is changed, and nothing else."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE exchanges SET {column} = ? WHERE number = ?", (value, number))


async def test_what_was_kept_is_found_before_and_after_its_commit(tmp_path: Path) -> None:
    """Also by the next process; a question that nobody asked has no answer."""
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        assert journal.keep(exchange(1)).reply == '{"n":1}'
        assert (journal.pending, await journal.find(subject(1))) == (1, exchange(1))
        await journal.flush()
        assert (journal.pending, await journal.find(subject(1)), await journal.find(subject(2))) == (
            0,
            exchange(1),
            None,
        )
    for opened in (open_journal, read_journal):
        async with opened(path) as journal:
            assert (await journal.find(subject(1)), await journal.find(subject(2))) == (exchange(1), None)


async def test_an_unknown_question_costs_no_query(tmp_path: Path) -> None:
    """Most questions of a run are new."""
    statements: list[str] = []
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        journal._connection.set_trace_callback(statements.append)
        assert await journal.find(subject(1)) is None
    assert statements == []


async def test_two_that_asked_at_once_agree(tmp_path: Path) -> None:
    """The first accepted reply is the answer, however late the second one comes, and in the file too."""
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        assert journal.keep(exchange(1, reply="first")).reply == "first"
        await journal.flush()
        assert journal.keep(exchange(1, reply="second")).reply == "first"
    assert [one.reply for one in await everything(path)] == ["first"]


async def test_refused_replies_are_kept_and_answer_nothing(tmp_path: Path) -> None:
    """An audit sees every attempt, in order."""
    path = tmp_path / "journal.sqlite"
    refused = exchange(1, reply="no JSON", refusal="malformed: it is not one JSON object")
    async with open_journal(path) as journal:
        assert journal.keep(refused) == refused
        assert await journal.find(subject(1)) is None
        journal.keep(exchange(1, attempt=1))
        assert (await journal.find(subject(1))).reply == '{"n":1}'
    assert await everything(path) == [refused, exchange(1, attempt=1)]


async def test_exchanges_of_a_role_or_a_task(tmp_path: Path) -> None:
    """In pages, with counts by role; those not yet committed are seen too."""
    many = [
        exchange(number, role="user" if number % 3 else "judge", task=f"task-{number % 2}") for number in range(600)
    ]
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        for one in many:
            journal.keep(one)
        journal.keep(exchange(600, role="user", task="task-2", refusal="leak: it tells what was not asked"))
        assert [one async for one in journal.exchanges(role="judge")] == [one for one in many if one.role == "judge"]
        assert [one async for one in journal.exchanges("user", "task-1")] == [
            one for one in many if one.role == "user" and one.task == "task-1"
        ]
        assert await journal.check() == Counts({"user": 400, "judge": 200}, {"user": 1})


async def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers leave the memory and are read from the file; questions wait for a commit where too much is pending."""
    monkeypatch.setattr("engine.llm.journal._RECENT_ANSWERS", 3)
    monkeypatch.setattr("engine.llm.journal._PENDING_ROWS", 2)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        for number in range(10):
            assert await journal.find(subject(number)) is None
            journal.keep(exchange(number))
            assert journal.pending <= 2
        assert len(journal._recent) == 3
        assert (await journal.find(subject(0))).reply == '{"n":0}'


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attempt", 1),
        ("role", "user"),
        ("task", "task-2"),
        ("endpoint", "sin"),
        ("model", "n"),
        ("reply", '{"n":2}'),
        ("reply", b'{"n":1}'),
        ("prompt_tokens", 121),
        ("completion_tokens", 8),
        ("digest", b"0" * 16),
    ],
)
def test_an_altered_field_is_found(tmp_path: Path, column: str, value: Any) -> None:
    """Named with file, subject and remedy, by who looks it up and by who reads everything."""
    path = tmp_path / "journal.sqlite"
    anyio.run(kept, path, exchange(1))
    altered(path, column, value)
    message = rf"journal\.sqlite: the exchange of subject '{subject(1)}' was altered .* restore the file from a copy"
    for look in (looked_up, checked):
        with pytest.raises(RunError, match=message):
            anyio.run(look, path)


def test_every_altered_byte_of_a_row_is_found(tmp_path: Path) -> None:
    """One byte after the other, the compressed request's and the subject's too, in the file itself."""
    path, seen = tmp_path / "journal.sqlite", 0
    anyio.run(kept, path, exchange(1))
    content = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        [row] = connection.execute("SELECT * FROM exchanges")
    for value in row[1:]:
        field = value if isinstance(value, bytes) else str(value).encode() if isinstance(value, str) else b""
        for start in range(content.rindex(field), content.rindex(field) + len(field)):
            path.write_bytes(content[:start] + bytes([content[start] ^ 0x80]) + content[start + 1 :])
            with pytest.raises(RunError, match=r"altered|damaged"):
                anyio.run(checked, path)
            seen += 1
    assert seen > 150


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """Not even a file beside it is made, so that a run directory without the right to write can be looked at."""
    path = tmp_path / "journal.sqlite"
    anyio.run(kept, path, exchange(1))
    before = path.read_bytes()
    assert anyio.run(everything, path) == [exchange(1)]
    assert [found.name for found in tmp_path.iterdir()] == ["journal.sqlite"]
    assert path.read_bytes() == before


async def test_a_reader_does_not_disturb_a_run(tmp_path: Path) -> None:
    """It sees what was committed before it came, and the run goes on writing."""
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        journal.keep(exchange(1))
        await journal.flush()
        async with read_journal(path) as reader:
            assert (await reader.find(subject(1))).reply == '{"n":1}'
            journal.keep(exchange(2))
            await journal.flush()
        assert (await journal.find(subject(2))).reply == '{"n":2}'


def test_flushed_exchanges_survive_a_kill(tmp_path: Path) -> None:
    """SIGKILL after a flush: what was flushed is there, for a reader too, out of the log that the kill left."""
    path = tmp_path / "journal.sqlite"
    script = f"""
import anyio, os, signal
from pathlib import Path
from tests.engine.llm.test_journal import exchange, open_journal
async def main():
    async with open_journal(Path({str(path)!r})) as journal:
        journal.keep(exchange(1))
        await journal.flush()
        journal.keep(exchange(2))
        os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.with_name("journal.sqlite-wal").stat().st_size
    assert anyio.run(everything, path) == [exchange(1)]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            f"PRAGMA user_version={JOURNAL_FORMAT + 1}",
            f"format {JOURNAL_FORMAT + 1}, this version reads {JOURNAL_FORMAT}",
        ),
        ("PRAGMA application_id=7", "not a journal of synth-engine"),
    ],
)
def test_a_database_of_another_kind_is_refused(tmp_path: Path, script: str, reason: str) -> None:
    """To write and to read."""
    path = tmp_path / "journal.sqlite"
    anyio.run(kept, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(script)
    for opened in (kept, everything):
        with pytest.raises(ConfigError, match=reason):
            anyio.run(opened, path)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    """Nothing to read there, and garbage."""
    path = tmp_path / "journal.sqlite"
    with pytest.raises(ConfigError, match=r"journal\.sqlite: there is no such file; this needs a journal"):
        anyio.run(everything, path)
    path.write_bytes(b"x" * 4096)
    for opened in (kept, everything):
        with pytest.raises(ConfigError, match="file is not a database"):
            anyio.run(opened, path)
