"""Task packs: what loads, what is refused, and how the refusal reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from engine.errors import ConfigError
from engine.packs import pack as tasks
from engine.packs.pack import PACK_FORMAT, PackHeader, check_pack, load_pack, task_json, write_pack
from engine.reward.checks import evaluate_check
from engine.schema.recordable import deeper_than
from engine.task import Split
from engine.world.tools import apply
from tests.parts.worlds import TEXT, call, outputs, shop, tool
from tests.parts.worlds import task_json as shop_json

HEADER = PackHeader(format=PACK_FORMAT, pack="shop", description="A shop.", license="Apache-2.0")


def lines(*values: Any) -> bytes:
    """JSON lines."""
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def pack(directory: Path, *values: Any, header: Any = None) -> Path:
    """A pack file of these task objects."""
    path = directory / "pack.jsonl"
    path.write_bytes(lines(header or {"format": 1, "pack": "shop"}, *values))
    return path


def reasons(directory: Path, *values: Any) -> list[str]:
    """Everything that `pack check` would say about these tasks."""
    return [str(problem) for problem in check_pack(pack(directory, *values)).problems]


# --- round trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pack.jsonl", "pack.jsonl.zst"])
def test_a_pack_is_what_was_written(tmp_path: Path, name: str) -> None:
    """Header, tasks and hash survive, compressed or not; equal tasks give equal bytes."""
    path = tmp_path / name
    written = (
        shop(),
        shop(
            id="shop-2",
            split="heldout",
            meta={"gold": ["…"]},
            user=None,
            rubric=shop_json()["rubric"] | {"interactions": []},
        ),
    )
    write_pack(path, HEADER, written)
    loaded = load_pack(path)
    assert (loaded.header, loaded.tasks) == (HEADER, written)
    assert loaded.tasks[1].split is Split.HELDOUT
    first = path.read_bytes()
    write_pack(path, HEADER, loaded.tasks)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_every_frame_of_a_pack_is_read(tmp_path: Path) -> None:
    """`cat a.zst b.zst` is a zstd file with all the tasks of both; empty and skippable frames say nothing."""
    path, made = tmp_path / "pack.jsonl.zst", zstandard.ZstdCompressor()
    parts = [lines({"format": 1, "pack": "shop"}), lines(shop_json()), b"", lines(shop_json(id="shop-2"))]
    skippable = b"\x50\x2a\x4d\x18" + (3000).to_bytes(4, "little") + bytes(3000)
    path.write_bytes(skippable.join(map(made.compress, parts)))
    assert [task.id for task in load_pack(path).tasks] == ["shop-1", "shop-2"]
    path.write_bytes(path.read_bytes()[:-3])
    assert "the zstd file ends early" in str(check_pack(path).problems[0])


def test_compression_does_not_change_the_hash(tmp_path: Path) -> None:
    """The hash is that of the lines."""
    for name in ("a.jsonl", "a.jsonl.zst"):
        write_pack(tmp_path / name, HEADER, [shop()])
    assert load_pack(tmp_path / "a.jsonl").sha256 == load_pack(tmp_path / "a.jsonl.zst").sha256


def test_a_task_keeps_its_json() -> None:
    """task_json gives back what a pack line said, defaults written out."""
    value = shop_json(
        meta={"free": [1, None]},
        world={
            "state": {"a": 1},
            "responses": [
                {
                    "tool": "rush_order",
                    "arguments": {"item": "x"},
                    "answer": 1,
                    "ok": False,
                    "after": [{"tool": "rush_order", "arguments": {"item": "y"}}],
                }
            ],
        },
    )
    made = task_json(shop(**value))
    assert made["tools"] == value["tools"]
    assert made["world"] == value["world"]
    assert made["meta"] == value["meta"]
    assert tasks.parse_task(made) == shop(**value)


def test_the_smallest_task_loads(tmp_path: Path) -> None:
    """Everything but id, instruction and a rubric has a default; blank lines are skipped."""
    path = pack(tmp_path, {"id": "a", "instruction": "b", "rubric": {"subgoals": [{"id": "c", "text": ""}]}})
    path.write_bytes(path.read_bytes() + b"\n  \n")
    (task,) = load_pack(path).tasks
    assert (task.split, task.kind, task.user, task.tools) == (Split.TRAIN, "tool_use", None, ())


# --- refused files --------------------------------------------------------------------------------------------------


def _truncated(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "not JSON"),
        ("a.jsonl", b"{}\n", "header.format: Field required"),
        ("a.jsonl", b"[]\n", "header"),
        ("a.jsonl", lines({"format": 1, "pack": "x"}), "the pack has no tasks"),
        ("a.jsonl", lines({"format": 2, "pack": "x"}), "unknown pack format 2 (this version reads format 1; upgrade"),
        *(
            (
                "a.jsonl",
                lines({"format": odd, "pack": "x"}),
                "a.jsonl:1: header.format: Input should be a valid integer",
            )
            for odd in ("1", "7", 1.0, 7.0, True, None, [])
        ),
        ("a.jsonl", lines({"format": 1, "pack": "x", "colour": 1}), "header.colour"),
        ("a.jsonl", lines({"format": 1, "pack": "x"}) + b"{\n", "a.jsonl:2: not JSON"),
        ("a.jsonl", lines({"format": 1, "pack": "x"}, []), "a.jsonl:2"),
        ("a.jsonl.zst", b"nonsense, not zstd", "not a zstd file"),
        ("a.jsonl.zst", _truncated(lines({"format": 1, "pack": "x"})), "the zstd file ends early"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """File, line, reason and remedy."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_pack(path)
    assert str(error.value).startswith(str(path))
    assert reason in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """No traceback for a path that is not there."""
    with pytest.raises(ConfigError, match=r"gone\.jsonl: cannot be read: No such file"):
        load_pack(tmp_path / "gone.jsonl")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds for the decompressed size, whatever the file's."""
    monkeypatch.setattr(tasks, "MAX_BYTES", 1 << 20)
    for name, content in (
        ("b.jsonl.zst", zstandard.ZstdCompressor().compress(bytes(1 << 25))),
        ("b.jsonl", bytes(1 << 21)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="1 MiB"):
            load_pack(tmp_path / name)


# --- refused tasks: shape -------------------------------------------------------------------------------------------


def changed(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The shop task after an edit of its JSON."""
    value = shop_json()
    edit(value)
    return value


@pytest.mark.parametrize("field", ["id", "instruction", "rubric"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    """Required fields, by name."""
    found = reasons(tmp_path, changed(lambda value: value.pop(field)))
    assert any(f"{field}: Field required" in reason for reason in found)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("id", 7),
        ("persona", 7),
        ("instruction", None),
        ("rules", []),
        ("tools", {}),
        ("workflow", "x"),
        ("user", []),
        ("world", []),
        ("rubric", []),
        ("kind", "chess"),
        ("split", "test"),
        ("meta", []),
    ],
)
def test_a_field_of_the_wrong_type_is_named(tmp_path: Path, field: str, wrong: Any) -> None:
    """Every field, by name, with line and task."""
    found = reasons(tmp_path, shop_json(**{field: wrong}))
    assert found
    assert all(reason.startswith(f"{tmp_path}/pack.jsonl:2: task ") and f": {field}" in reason for reason in found)


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda v: v.update(colour=1), "colour"),
        (lambda v: v["tools"][0].update(name="x"), "tools[0].name beside function"),
        (lambda v: v["tools"][1].update(effects={}), "tools[1].effects"),
        (lambda v: v["tools"][0].update(type="tool"), "tools[0].type"),
        (lambda v: v["tools"][0]["function"].pop("name"), "tools[0].name"),
        (lambda v: v["tools"][0]["function"].update(strict=True), "tools[0].function.strict"),
        (lambda v: v["user"]["facts"]["item"].pop("keywords"), "user.facts.item.keywords"),
        (lambda v: v["world"].update(state=[]), "world.state"),
        (lambda v: v["world"].update(responses=[{"tool": "list_orders"}]), "world.responses[0].arguments"),
        (lambda v: v["rubric"]["subgoals"][1].pop("id"), "rubric.subgoals[1].id"),
        (lambda v: v["rubric"].update(extra=[]), "rubric.extra"),
    ],
)
def test_a_nested_field_is_named_by_its_path(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], field: str) -> None:
    """Unknown, missing and ill-typed members, wherever they are."""
    found = reasons(tmp_path, changed(edit))
    assert any(f"task shop-1: {field}: " in reason for reason in found), found


# --- refused tasks: meaning -----------------------------------------------------------------------------------------


def effect(value: Any) -> Callable[[dict[str, Any]], Any]:
    """An edit that gives get_order another effect."""
    return lambda task: task["tools"][0].update(effect=value)


def response(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """An edit that seeds a response."""
    seeded = {"tool": "rush_order", "arguments": {"item": "x"}, "answer": {}} | changes
    return lambda task: task["world"].update(responses=[seeded])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda v: v.update(id=" "), "id: is empty"),
        (lambda v: v.update(instruction=""), "instruction: is empty"),
        (lambda v: v["tools"].append(tool("get_order", {})), "tools: 'get_order' occurs twice"),
        (lambda v: v["tools"].append(tool("no spaces", {})), "tools[5].name: 'no spaces' is no function name"),
        (lambda v: v["tools"].append(tool("x", {"a": {"type": "text"}})), "tools[5].parameters.properties.a.type"),
        (lambda v: v["tools"].append(tool("x", {"a": ["string"]})), "tools[5].parameters.properties.a"),
        (
            lambda v: v["tools"].append(tool("x", {}, outputs={"type": "string"})),
            "tools[5].outputs.type: must be 'object'",
        ),
        (lambda v: v["tools"].append(tool("x", {}, outputs=outputs(a={"$ref": "file:///etc"}))), "$ref must be local"),
        (
            lambda v: v["tools"].append(tool("x", {}, outputs=outputs(a=True))),
            "tools[5].outputs.schema.properties.a: must be an object",
        ),
        (
            lambda v: v["tools"].append(tool("x", {}, outputs=outputs(a={"properties": {"b": False}}))),
            "tools[5].outputs.schema.properties.a.properties.b: must be an object",
        ),
        (
            lambda v: v["tools"].append(tool("x", {}, outputs=outputs(a=TEXT | {"minLength": 1001.0}))),
            "outputs.schema.properties.a.minLength: a text that is drawn has at most 1000 characters",
        ),
        (
            lambda v: v["tools"].append(tool("x", {}, outputs=outputs(a={"type": "integer", "minimum": 1e300}))),
            "outputs.schema.properties.a.minimum: a number that is drawn is at most 2**62 in size",
        ),
        (
            lambda v: v["tools"].append(tool("x", {"a": {"enum": ["b", "cafe\u0301"]}})),
            r"schema.properties.a: 'cafe\u0301' equals no argument, which are all trimmed and in NFC: write 'caf\xe9'",
        ),
        (lambda v: v["tools"].append(tool("x", {"a": {"const": [" b"]}})), "[' b'] equals no argument"),
        (lambda v: v["tools"].append(tool("x", {"a": {"const": 2**63}})), "an integer does not fit into 64 bits"),
        (
            lambda v: v["tools"].append(tool("x", {"cafe\u0301": TEXT})),
            r"tools[5].parameters.schema: {'cafe\u0301': None} equals no argument",
        ),
        (
            lambda v: v["world"]["state"]["orders"]["old"].update({"due ": 1}),
            "world.state/orders/old: 'due ' equals no argument, which are all trimmed and in NFC: write 'due'",
        ),
        (
            lambda v: v["world"]["state"]["orders"].update(all=[{"cafe\u0301": 1}]),
            r"world.state/orders/all/0: 'cafe\u0301' equals no argument",
        ),
        (
            lambda v: v["world"]["state"]["catalogue"].update(item="apple "),
            "NFC: write 'apple' (a tool requires an argument to equal it)",
        ),
        (
            effect({"write": "/a", "value": 1, "requires": {"/b": ["{id} "]}}),
            "effect.requires./b: ['{id} '] equals no argument",
        ),
        (effect({"read": "/a" * 65}), "tools[0].effect.read: has more than 64 tokens (keep the state flatter)"),
        (effect({"read": "orders"}), "tools[0].effect.read: pointer 'orders' must be empty or start with '/'"),
        (effect({"read": "/a~b"}), "'~' must be written ~0"),
        (effect({"read": 3}), "tools[0].effect.read: must be a string"),
        (effect({"read": "/orders/{number}"}), "{number} is no parameter of get_order (its parameters: id)"),
        (effect({"write": "/orders/{id}"}), "has the keys write"),
        (effect({}), "has the keys (none)"),
        (effect({"read": "/orders", "write": True}), "has the keys read, write"),
        (effect({"write": "", "value": {}}), "would replace the whole state"),
        (effect({"write": "/a", "value": {"{x}": 1, "b": ["{y}"]}}), "effect.value: {y} is no parameter"),
        (effect({"write": "/a", "value": 1, "requires": []}), "effect.requires: must be an object"),
        (effect({"write": "/a", "value": 1, "requires": {"b": "{id}"}}), "effect.requires.b: pointer 'b'"),
        (effect({"write": "/a", "value": 1, "requires": {"/b": "{c}"}}), "effect.requires./b: {c} is no parameter"),
        (lambda v: v["user"]["facts"]["item"].update(keywords=[]), "user.facts.item.keywords: without a keyword"),
        (lambda v: v["user"]["facts"]["item"].update(keywords=[" "]), "user.facts.item.keywords: without a keyword"),
        (lambda v: v.update(kind="math"), "user: a math task has no user"),
        (response(tool="nope"), "world.responses[0]: unknown tool nope"),
        (response(arguments={}), "world.responses[0]: missing argument item"),
        (response(after=[{"tool": "list_orders", "arguments": {}}]), "after[0].tool: list_orders does not write"),
        (response(after=[{"tool": "rush_order"}]), "world.responses[0].after[0]: is no call"),
        (response(after=[{"tool": "rush_order", "arguments": {"x": 1}}]), "after[0]: missing argument item"),
        (lambda v: v.update(rubric={"forbidden": [{"id": "f", "text": ""}]}), "rubric: has neither subgoals nor inter"),
        (lambda v: v["rubric"]["interactions"][0].update(id="told"), "rubric: 'told' occurs twice"),
        (
            lambda v: v["rubric"]["subgoals"][0].update(check={"called": {"tool": "x"}}),
            "rubric.subgoals[0].check.called.tool",
        ),
        (
            lambda v: v["rubric"]["subgoals"][1].update(check={"answered": {"matches": "("}}),
            "check.answered.matches: '('",
        ),
        (lambda v: v.update(user=None), "rubric.interactions[0].check.revealed: the user has no fact 'quantity'"),
    ],
)
def test_a_task_that_means_nothing_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    """Every semantic rule, with the field and the reason."""
    found = reasons(tmp_path, changed(edit))
    assert any(reason in text for text in found), found


def deep(levels: int, inner: Any = 1, name: str = "a") -> Any:
    """An object that nests so deep."""
    for _ in range(levels):
        inner = {name: inner}
    return inner


def test_a_task_may_nest_to_the_bound(tmp_path: Path) -> None:
    """64 levels load wherever they are, and what the deepest call makes of them is evaluated and fits into a frame."""
    write = {"write": "/a" * 62, "value": deep(60, "{x}"), "requires": {"/b": "{y}"}}
    deepest = tool("deep", {"x": deep(56, {}, "not"), "y": {}}, outputs=outputs(z=deep(56, {}, "not")), effect=write)
    state, rubric = (
        deep(62) | {"b": 1},
        {"subgoals": [{"id": "s", "text": "", "check": deep(59, {"revealed": "item"}, "not")}]},
    )
    assert reasons(tmp_path, shop_json(world={"state": state}, meta=deep(63), tools=[deepest], rubric=rubric)) == []
    task = load_pack(tmp_path / "pack.jsonl").tasks[0]
    made = apply(task, task.world.state, call("deep", x=deep(31), y=1))
    assert made.ok
    assert deeper_than(150, made.state)
    assert orjson.dumps(deep(64, made.state))
    assert evaluate_check(rubric["subgoals"][0]["check"], []) == (True, None)


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda v: v.update(meta=deep(64)), "meta"),
        (lambda v: v.update(meta=[deep(900)]), "meta"),
        (lambda v: v.update(id=deep(300)), "id"),
        (lambda v: v["world"].update(state=deep(63)), "world"),
        (lambda v: v["tools"].append(tool("x", {"a": deep(300)})), "tools"),
        (lambda v: v["tools"].append(tool("x", {}, outputs=outputs(a=deep(60, {"not": {}})))), "tools"),
        (lambda v: v["rubric"]["subgoals"][0].update(check=deep(300)), "rubric"),
    ],
)
def test_a_task_that_nests_too_deeply_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], field: str
) -> None:
    """Before anything walks it: schema, state, check, and what is never read."""
    path = tmp_path / "pack.jsonl"
    path.write_bytes(lines({"format": 1, "pack": "shop"}) + json.dumps(changed(edit)).encode())
    (found,) = check_pack(path).problems
    name = "" if field == "id" else "task shop-1: "
    assert str(found).startswith(f"{path}:2: {name}{field}: nests deeper than 64 levels")
    assert str(found).endswith("(flatten it)")


def test_everything_is_reported_and_the_first_stops_loading(tmp_path: Path) -> None:
    """`pack check` lists all problems of all lines; loading raises the first and says where the rest is."""
    wrong = [
        shop_json(id="a", rules=3),
        shop_json(id="b"),
        shop_json(id="b", instruction=""),
        shop_json(id="c", kind="x"),
    ]
    path = pack(tmp_path, *wrong)
    found = [(problem.line, problem.task, problem.field) for problem in check_pack(path).problems]
    assert found == [(2, "a", "rules"), (4, "b", "id"), (4, "b", "instruction"), (5, "c", "kind")]
    with pytest.raises(
        ConfigError, match=r"pack\.jsonl:2: task a: rules: .*\n`synth-engine pack check .*` lists everything"
    ):
        load_pack(path)


def test_a_pattern_of_a_schema_stays_text() -> None:
    """A parameter may be called pattern or $ref: only keywords are judged."""
    named = tool("x", {"pattern": TEXT, "$ref": {"anyOf": [TEXT]}})
    assert shop(tools=[*shop_json()["tools"], named]).tools[-1].name == "x"
