"""bench: the benches that there are, and how `python -m bench` ends."""

import re
from pathlib import Path

import pytest

import bench.__main__ as entry

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"


def test_make_bench_runs_every_bench():
    """The list in the Makefile is that of the folder."""
    [listed] = re.findall(r"for name in ([\w ]+);", MAKEFILE.read_text(encoding="utf-8"))
    assert sorted(listed.split()) == entry.names()


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_exit_code_of_a_bench_is_kept(monkeypatch, returned, code):
    """A bench that returns nothing succeeded."""

    class Bench:
        main = staticmethod(lambda _arguments: returned)

    monkeypatch.setattr(entry.importlib, "import_module", lambda _name: Bench)
    monkeypatch.setattr(entry.sys, "argv", ["bench", "core"])
    assert entry.main() == code
