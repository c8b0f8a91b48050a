"""What the screens look like, as text: three of them in two sizes, over one small recorded run.

After a change that is meant to be seen: `python -m tests.parts.pictured_runs`, then look at what `git diff` shows.
"""

import pytest

from tests.parts.pictured_runs import DIRECTORY, PICTURES, drawn, pictured


@pytest.fixture(autouse=True)
def _reads_its_styles(blockbuster):
    """Textual reads its style sheets on its loop, which is not the engine's."""
    blockbuster.deactivate()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run, recorded."""
    return pictured(tmp_path_factory.mktemp("pictured"))


@pytest.mark.parametrize("picture", PICTURES)
async def test_a_screen_looks_as_it_did(picture, run):
    """Line by line."""
    name, size = PICTURES[picture]
    expected = (DIRECTORY / f"{picture}.txt").read_text(encoding="utf-8").splitlines()
    assert await drawn(run, name, size) == expected, "if that is meant: python -m tests.parts.pictured_runs"


def test_there_is_no_picture_that_nobody_draws():
    """One file for each."""
    assert {path.stem for path in DIRECTORY.glob("*.txt")} == set(PICTURES)
