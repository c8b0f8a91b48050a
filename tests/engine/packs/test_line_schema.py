"""engine.packs.line_schema: what an editor is told of a pack's lines is what a pack may hold."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.packs.effect_forms import EFFECTS, EffectForm, effect_schema
from engine.packs.line_schema import header_schema, task_schema
from engine.packs.pack import load_pack, parse_task, task_json
from engine.reward.check_kinds import CHECKS
from engine.task import Task
from tests.parts.places import ASSETS, ROOT
from tests.parts.worlds import TEXT, shop, tool
from tests.parts.worlds import task_json as shop_json

TASKS = jsonschema.Draft202012Validator(task_schema())
HEADERS = jsonschema.Draft202012Validator(header_schema())
PACKS = [ASSETS / "packs/showcase.jsonl", ASSETS / "packs/errands.jsonl.zst", ROOT / "docs/examples/library.jsonl"]
SLICES = 16


@pytest.fixture(scope="module")
def tiny() -> Sequence[Task]:
    """The tasks of the tiny family."""
    return load_pack(ASSETS / "packs/tiny.jsonl.zst").tasks


@pytest.mark.parametrize("schema", [task_schema(), header_schema(), effect_schema()])
def test_it_is_a_schema_of_that_draft(schema: dict[str, Any]):
    """By the draft's own schema."""
    jsonschema.Draft202012Validator.check_schema(schema)


def test_it_names_its_draft():
    """So that editors know."""
    assert {schema["$schema"] for schema in (task_schema(), header_schema())} == {
        "https://json-schema.org/draft/2020-12/schema"
    }


@pytest.mark.parametrize("pack", PACKS, ids=[pack.name for pack in PACKS])
def test_every_shipped_task_fits(pack: Path):
    """As it is written with its defaults; hand-written lines also as they stand in the file."""
    assert _unfit(load_pack(pack).tasks) == []
    if pack.suffix == ".jsonl":
        header, *lines = map(orjson.loads, pack.read_bytes().splitlines())
        assert HEADERS.is_valid(header)
        assert [line["id"] for line in lines if not TASKS.is_valid(line)] == []


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, SLICES))])
def test_every_task_of_the_tiny_family_fits(tiny: Sequence[Task], part: int):
    """Its thousands, a part of them each time."""
    assert _unfit(tiny[part::SLICES]) == []


def _unfit(tasks: Sequence[Task]) -> list[str]:
    return [task.id for task in tasks if not TASKS.is_valid(orjson.loads(orjson.dumps(task_json(task))))]


def test_every_field_says_what_it_means():
    """A sentence for each, wherever it is."""
    fields = [*_fields(task_schema()), *_fields(header_schema())]
    assert len(fields) > 60
    assert [place for place, field in fields if not field.get("description")] == []


def _fields(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    members = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, inner in members:
        here = f"{place}/{name}"
        if name == "properties":
            yield from ((f"{here}/{field}", schema) for field, schema in inner.items())
        if name not in ("examples", "default"):
            yield from _fields(inner, here)


def test_it_has_every_effect_and_every_kind_of_check():
    """With the sentences and examples of the tables that packs are held against."""
    definitions = task_schema()["$defs"]
    effects = [(one["description"], one["examples"]) for one in definitions["effect"]["oneOf"]]
    checks = [(one["description"], one["examples"]) for one in definitions["check"]["oneOf"]]
    assert effects == [(form.says, [form.example]) for form in EFFECTS]
    assert checks == [(kind.says, [{name: kind.example}]) for name, kind in CHECKS.items()]


# --- what is no task ------------------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], Any]
BROKEN: list[Edit] = [
    lambda v: v.pop("id"),
    lambda v: v.pop("instruction"),
    lambda v: v.pop("rubric"),
    lambda v: v.update(colour=1),
    lambda v: v.update(id=7),
    lambda v: v.update(rules=[]),
    lambda v: v.update(tools={}),
    lambda v: v.update(workflow="x"),
    lambda v: v.update(user=[]),
    lambda v: v.update(kind="chess"),
    lambda v: v.update(split="test"),
    lambda v: v.update(meta=[]),
    lambda v: v["world"].update(state=[]),
    lambda v: v["world"].update(responses=[{"tool": "rush_order"}]),
    lambda v: v["world"].update(responses=[_seeded(after=[{"tool": "rush_order"}])]),
    lambda v: v["world"].update(responses=[_seeded(after=["rush_order"])]),
    lambda v: v["world"].update(responses=[_seeded(okay=True)]),
    lambda v: v["tools"][0].update(type="tool"),
    lambda v: v["tools"][0].update(name="x"),
    lambda v: v["tools"][0].update(effects={}),
    lambda v: v["tools"][0]["function"].pop("name"),
    lambda v: v["tools"][0]["function"].update(strict=True),
    lambda v: v["tools"].append(tool("no spaces", {"a": TEXT})),
    lambda v: v["tools"][0].update(effect={}),
    lambda v: v["tools"][0].update(effect={"read": 3}),
    lambda v: v["tools"][0].update(effect={"read": "orders"}),
    lambda v: v["tools"][0].update(effect={"write": "/a"}),
    lambda v: v["tools"][0].update(effect={"write": "", "value": 1}),
    lambda v: v["tools"][0].update(effect={"write": False}),
    lambda v: v["tools"][0].update(effect={"write": "/a", "value": 1, "requires": []}),
    lambda v: v["user"].pop("context"),
    lambda v: v["user"]["facts"]["item"].pop("keywords"),
    lambda v: v["user"]["facts"].update(item="apple"),
    lambda v: v["rubric"]["subgoals"][0].pop("text"),
    lambda v: v["rubric"]["subgoals"][0].update(check={"sayd": {}}),
    lambda v: v["rubric"]["subgoals"][0].update(check={"before": [{"revealed": "item"}]}),
    lambda v: v["rubric"]["subgoals"][0].update(check={"all": []}),
    lambda v: v["rubric"].update(extra=[]),
]


def _seeded(**more: Any) -> dict[str, Any]:
    return {"tool": "rush_order", "arguments": {"item": "x"}, "answer": {}, **more}


@pytest.mark.parametrize("edit", BROKEN)
def test_what_has_the_wrong_shape_does_not_fit(edit: Edit):
    """And is refused when the pack is loaded, too."""
    value = copy.deepcopy(shop_json())
    assert TASKS.is_valid(value)
    edit(value)
    assert not TASKS.is_valid(value)
    with pytest.raises(ConfigError):
        parse_task(value)


ODD = ({"format": 2}, {"format": "1"}, {"colour": 1})


@pytest.mark.parametrize("header", [{}, [], {"format": 1}, *({"format": 1, "pack": "x"} | odd for odd in ODD)])
def test_what_is_no_header_does_not_fit(header: Any):
    """Missing, unknown, another format."""
    assert HEADERS.is_valid({"format": 1, "pack": "x"})
    assert not HEADERS.is_valid(header)


# --- effects --------------------------------------------------------------------------------------------------------

EFFECT = jsonschema.Draft202012Validator(effect_schema())
TEXTS = ("", "/a", "a", "/orders/{id}")
VALUES = st.sampled_from([True, False, None, 0, 1, *TEXTS, [], ["{id}"], {}, {"/a": 1}, {"a": 1}])


@pytest.mark.parametrize("form", EFFECTS)
def test_every_form_of_an_effect_shows_an_example_of_itself(form: EffectForm):
    """It fits, and loads in a task whose tool has the parameters that it names."""
    assert EFFECT.is_valid(form.example)
    parameters = dict.fromkeys(("id", "item", "quantity"), TEXT)
    loaded = shop(tools=[*shop_json()["tools"], tool("x", parameters, effect=form.example)])
    assert loaded.tools[-1].effect == form.example


@given(st.dictionaries(st.sampled_from(["read", "write", "value", "requires", "more"]), VALUES, max_size=4))
def test_an_effect_fits_exactly_if_it_is_not_refused(effect: dict[str, Any]):
    """Here, where every placeholder names a parameter and no pointer is odd, the shape is all."""
    value = shop_json()
    value["tools"][0]["effect"] = effect
    try:
        shop(**value)
    except ConfigError:
        assert not EFFECT.is_valid(effect)
    else:
        assert EFFECT.is_valid(effect)
