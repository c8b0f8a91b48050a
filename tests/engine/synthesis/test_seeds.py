"""engine.synthesis.seeds: personas, policies, and what a file is recognised as."""

import re
from collections import Counter

import orjson
import pytest

from engine.config.load import ASSETS
from engine.errors import ConfigError
from engine.synthesis.seeds.reading import read_seeds
from engine.synthesis.seeds.seed import SeedKind
from tests.parts.places import ROOT

TRAM = "A tram driver in Porto whose knee operation was moved forward."
BAKER = "A baker in Asmara with orders for the holiday in two notebooks."
TOOLS = [{"name": "f", "description": "F.", "parameters": {"type": "object"}}]


def written(directory, content, name="seeds"):
    """A file with this content."""
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*values):
    """JSON Lines."""
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def refused(paths, policy=None):
    """The sentences with which these files are refused."""
    with pytest.raises(ConfigError) as error:
        read_seeds(paths, policy)
    return str(error.value)


# --- personas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (f"{TRAM}\n\n  {BAKER}\n", "personas, one a line"),
        (f"\ufeff{TRAM}\r\n{BAKER}\r\n", "personas, one a line"),
        (lines({"persona": TRAM}, {"persona": BAKER}), "personas, JSON Lines"),
        (orjson.dumps([{"persona": TRAM}, {"persona": f" {BAKER}\n"}]), "personas, a JSON array"),
    ],
)
def test_a_persona_is_the_same_seed_in_every_form(tmp_path, content, form):
    """By its words alone: neither file nor place is part of its id."""
    [file] = read_seeds([written(tmp_path, content)])
    assert file.form == form
    assert [(seed.kind, seed.trade, seed.persona) for seed in file.seeds] == [
        (SeedKind.PERSONA, "", TRAM),
        (SeedKind.PERSONA, "", BAKER),
    ]
    [alone] = read_seeds([written(tmp_path, BAKER)])
    assert alone.seeds == file.seeds[1:]
    assert re.fullmatch(r"persona-[0-9a-f]{12}", alone.seeds[0].id)


def test_an_id_and_a_trade_are_kept(tmp_path):
    """One line is a file of JSON Lines too; what else it has is named."""
    given = {"id": "tram-1", "trade": "tram driver", "persona": TRAM, "age": 44}
    [file] = read_seeds([written(tmp_path, lines(given))])
    assert file.seeds[0].json() == {"id": "tram-1", "kind": "persona", "trade": "tram driver", "persona": TRAM}
    assert [(note.field, note.kept) for note in file.notes] == [("age", False)]


def test_a_persona_that_is_there_twice_is_one(tmp_path):
    """In one file, and over several."""
    one, other = written(tmp_path, f"{TRAM}\n{TRAM}\n", "one"), written(tmp_path, f"{TRAM}\n{BAKER}\n", "other")
    first, second = read_seeds([one, other])
    assert [seed.persona for seed in first.seeds + second.seeds] == [TRAM, BAKER]
    assert first.notes[0].became == "is the persona of line 1 once more"
    assert second.notes[0].became == f"stands in {one} too"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty (docs/seeds.md has an example of each form)"),
        (lines({"persona": TRAM}) + b"{\n" + b"nothing\n", "line 2: not JSON: "),
        (lines({"persona": TRAM}, {"person": TRAM}), 'line 2: is no persona (one object each: {"persona": "…"}'),
        (lines({"persona": TRAM}, {"persona": 7}), "line 2.persona: is no text"),
        (lines({"persona": TRAM}, {"persona": " "}), "line 2.persona: is empty"),
        (lines({"persona": TRAM, "trade": 7}, {"persona": BAKER}), "line 1.trade: is no text"),
        (lines({"persona": TRAM, "id": "\x1b[2J"}, {"persona": BAKER}), "line 1.id: '\\x1b[2J' is no id (at most 64"),
        (
            lines({"persona": TRAM, "id": "a"}, {"persona": BAKER, "id": "a"}),
            "line 2.id: 'a' is used in line 1 too (ids are unique)",
        ),
        (lines({"persona": "A\x1b[2J"}, {"persona": BAKER}), "line 1.persona: has control characters (take them out"),
        ("# Rules\n\nNever do.\n", "line 1: looks like Markdown, not like a list of personas"),
        (f"{TRAM}\n- {BAKER}\n", "line 2: looks like Markdown"),
        (f"{TRAM}\nA \x1b[2J\n", "line 2: has control characters"),
        ('{"openapi": "3.0.0",\n "paths": }', "line 2: not JSON: "),
        ('{"colour": 1, "\\u001b": 2}', "is JSON, but neither personas nor tools: 'colour', '\\x1b'"),
        ("[" * 200 + "]" * 200, "nests deeper than 100 levels"),
        (b"\xff\xfea", "is not UTF-8 at byte 0 (save it as UTF-8"),
        ("[]", "has no tool that can be used"),
    ],
)
def test_a_file_that_holds_no_seeds_is_refused(tmp_path, content, sentence):
    """With its name, the place and a remedy."""
    said = refused([written(tmp_path, content, "mine")])
    assert said.startswith(f"{tmp_path / 'mine'}: ")
    assert sentence in said


def test_everything_that_is_wrong_is_listed(tmp_path):
    """Not the first line alone."""
    said = refused([written(tmp_path, lines({"persona": TRAM}, {"a": 1}, {"persona": ""}))])
    assert [line.split(": ")[1] for line in said.splitlines()] == ["line 2", "line 3.persona"]


def test_two_seeds_with_one_id_are_refused_over_files_too(tmp_path):
    """Which of them a task is made of would be chance."""
    one = written(tmp_path, lines({"persona": TRAM, "id": "a"}), "one")
    other = written(tmp_path, lines({"persona": BAKER, "id": "a"}), "other")
    assert f"a: this id has another seed in {one} (ids are unique over all files)" in refused([one, other])


# --- several files, and a policy ------------------------------------------------------------------------------------


def test_a_directory_is_the_files_in_it(tmp_path):
    """By name, without hidden ones and directories; a file that is named twice is read once."""
    tools = written(tmp_path, orjson.dumps(TOOLS), "b.json")
    written(tmp_path, TRAM, "a.txt")
    written(tmp_path, b"\xff", ".hidden")
    (tmp_path / "inside").mkdir()
    found = read_seeds([tmp_path, tools])
    assert [file.form for file in found] == ["personas, one a line", "OpenAI functions"]


def test_a_directory_without_files_is_refused(tmp_path):
    """Nothing would be made of it."""
    assert f"{tmp_path}: has no files" in refused([tmp_path])


def test_a_file_that_is_not_there_is_named(tmp_path):
    """With the system's reason."""
    assert "nowhere.txt: cannot be read: No such file" in refused([tmp_path / "nowhere.txt"])


def test_a_policy_belongs_to_the_tools_beside_it(tmp_path):
    """And to their id, but not to persons."""
    people, tools = written(tmp_path, TRAM, "people"), written(tmp_path, orjson.dumps(TOOLS), "tools")
    rules = written(tmp_path, "# Rules\n\nNever sell on Sundays.\n", "rules.txt")
    persons, domain = read_seeds([people, tools], rules)
    assert domain.seeds[0].policy == "# Rules\n\nNever sell on Sundays."
    assert persons.seeds[0].policy == ""
    assert domain.seeds[0].id != read_seeds([tools])[0].seeds[0].id


@pytest.mark.parametrize(
    ("seeds", "rules", "sentence"),
    [
        (TRAM, "Never.", "rules: is a policy without tools (give the tools"),
        (orjson.dumps(TOOLS), " \n", "rules: is empty (write the rules"),
        (orjson.dumps(TOOLS), "[]", "rules: is JSON, not a policy (write the rules"),
    ],
)
def test_a_policy_that_cannot_be_one_is_refused(tmp_path, seeds, rules, sentence):
    """Before a teacher reads it."""
    assert sentence in refused([written(tmp_path, seeds, "seeds")], written(tmp_path, rules, "rules"))


# --- what is shipped ------------------------------------------------------------------------------------------------


def test_the_shipped_personas_are_many_and_of_many_trades(tmp_path, monkeypatch):
    """And are found by their name wherever one is, unless a file has it."""
    monkeypatch.chdir(tmp_path)
    [file] = read_seeds([ASSETS / "personas.jsonl"])
    assert [found.seeds for found in read_seeds([tmp_path.relative_to(tmp_path) / "personas"])] == [file.seeds]
    assert file.notes == ()
    assert len(file.seeds) >= 320
    assert f"the {len(file.seeds)} that are shipped" in (ROOT / "docs/seeds.md").read_text()
    assert len({seed.trade for seed in file.seeds}) >= 120
    assert all(seed.trade == seed.trade.lower() for seed in file.seeds)


def test_no_shipped_persona_is_told_like_another():
    """No two share a third of their threes of words, no five begin alike; each is a sentence or two."""
    [file] = read_seeds([ASSETS / "personas.jsonl"])
    told = [re.findall(r"\w+", seed.persona.lower()) for seed in file.seeds]
    threes = [set(zip(words, words[1:], words[2:], strict=False)) for words in told]
    near = [
        (file.seeds[i].id, file.seeds[j].id)
        for i, one in enumerate(threes)
        for j, other in enumerate(threes[:i])
        if 3 * len(one & other) > len(one | other)
    ]
    assert near == []
    assert max(Counter(tuple(words[:2]) for words in told).values()) < 5
    assert {len(words) for words in told} <= set(range(15, 60))
