"""The offline tool simulator: admission, effects, drawn outputs, canonical arguments."""

import subprocess
import sys
import unicodedata
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.llm.question import exactly
from engine.schema import plain as plain_schema
from engine.schema import pointer
from engine.schema.canonical import canonical, canonical_bytes, same
from engine.schema.draw import LONGEST, drawn_value
from engine.schema.validate import compiled_schema, schema_problems
from engine.types import ToolCall
from engine.world import effects
from engine.world.admission import admit
from engine.world.tools import apply
from tests.parts.worlds import NUMBER, ORDER, TEXT, call, outputs, shop, tool

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([0.5, 1.0, 2.0, 1e300, "", "a", "é", "e\u0301", " a "])
    | st.sampled_from([10**16, 1e16, 2**53 + 1, 2.0**53, 2**62, 2.0**62, -(2**63), -(2.0**63), 2.0**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcé"), inner, max_size=3),
    max_leaves=8,
)

PLAIN = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer"},
            {"type": "number", "minimum": 1, "exclusiveMaximum": 2},
            {"type": ["boolean", "null"]},
            {"enum": ["a", 1, True, None, [1]]},
            {"const": 1},
            {"const": False},
            {"type": "string", "minLength": 1, "maxLength": 1},
            {"pattern": "^a"},
            {},
        ]
    ),
    lambda inner: (
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner)
        | st.builds(
            lambda fields, required, closed: {
                "properties": fields,
                "required": required,
                "additionalProperties": closed,
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.lists(st.sampled_from("abc"), unique=True, max_size=2),
            st.booleans(),
        )
    ),
    max_leaves=6,
)


OPEN = {"interactions": [{"id": "i", "text": ""}]}


def reordered(value: Any) -> Any:
    """The same JSON value with keys in reverse order and decomposed, white space around strings, integral floats."""
    if isinstance(value, dict):
        return {unicodedata.normalize("NFD", key): reordered(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reordered(inner) for inner in value]
    if isinstance(value, str):
        return f" {value}\n"
    exact = isinstance(value, int) and not isinstance(value, bool) and int(float(value)) == value
    return float(value) if exact else value


# --- canonical arguments --------------------------------------------------------------------------------------------


@given(JSON)
def test_spelling_does_not_change_the_key(value: Any) -> None:
    """Key order, 25 against 25.0, white space and Unicode composition give the same canonical bytes."""
    assert canonical_bytes(canonical(value)) == canonical_bytes(canonical(reordered(value)))
    assert canonical(canonical(value)) == canonical(value)
    assert same(canonical(value), canonical(reordered(value)))


@given(JSON, JSON)
def test_keys_are_equal_exactly_for_equal_values(left: Any, right: Any) -> None:
    """Canonical bytes are equal when, and only when, the canonical values are equal as JSON."""
    left, right = canonical(left), canonical(right)
    assert (canonical_bytes(left) == canonical_bytes(right)) == same(left, right)


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), 2**64, 10**400, -(2**63) - 1, "\ud800", {"\ud800": 1}, {"a": [{1, 2}]}),
        {"\u00e9": 1, "e\u0301": 2},
    ],
)
def test_what_json_cannot_hold_is_a_malformed_call(value: Any) -> None:
    """NaN, infinities, huge integers, lone surrogates, a name twice: an error observation, not an exception."""
    task = shop(tools=[tool("get_order", {"id": {}})], rubric=OPEN)
    applied = apply(task, {}, call("get_order", id=value))
    assert not applied.ok
    assert applied.answer["error"].startswith("malformed call")


def test_defaults_are_filled_in() -> None:
    """Writing a schema default out is the same call as leaving it away."""
    task = shop()
    assert admit(task, ORDER) == admit(task, call("place_order", quantity=5.0, item=" apple ", gift=False))


@pytest.mark.parametrize("given_arguments", [{}, {"o": {}}, {"o": {"p": {}}}, {"o": {"p": {"q": 1.0}}}])
def test_defaults_of_defaults_are_filled_in(given_arguments: dict[str, Any]) -> None:
    """A default object gets its own properties' defaults, however little of it is written out."""
    inner = {"properties": {"q": {"default": 1}}, "default": {}}
    task = shop(tools=[tool("g", {"o": {"properties": {"p": inner}, "default": {}}})], rubric=OPEN)
    assert admit(task, call("g", **given_arguments)).arguments == {"o": {"p": {"q": 1}}}


def test_a_decomposed_name_is_the_declared_one() -> None:
    """Names are composed before defaults are looked for: no property occurs twice."""
    task = shop(tools=[tool("g", {"caf\u00e9": {"default": 1}})], rubric=OPEN)
    assert admit(task, ToolCall(name="g", arguments={"cafe\u0301": 2})).arguments == {"caf\u00e9": 2}


# --- admission ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (call("get_ordr", id="old"), "unknown tool get_ordr"),
        (call("get_order"), "missing argument id"),
        (call("get_order", id=3), "bad argument id: expected string"),
        (call("get_order", id="old", extra=1), "bad argument extra: unexpected"),
        (call("place_order", item="plum", quantity=1), 'bad argument item: expected one of ["apple","pear"]'),
        (call("place_order", item="apple", quantity=True), "bad argument quantity: expected integer"),
        (call("place_order", item="apple", quantity=99), "bad argument quantity: maximum 50"),
    ],
)
def test_a_wrong_call_is_an_answer(wrong: Any, error: str) -> None:
    """What a real API would refuse is an error observation that changes nothing."""
    task = shop()
    assert apply(task, task.world.state, wrong) == ({"error": error}, False, task.world.state)


@settings(max_examples=300)
@given(PLAIN, JSON)
def test_plain_schemas_agree_with_jsonschema(schema: dict[str, Any], value: Any) -> None:
    """The closures give jsonschema's verdict; `pattern` alone runs on RE2."""
    assert plain_schema.plain_check(schema) is not None
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (compiled_schema(schema)(value) is None) == expected


def test_general_schemas_name_the_argument() -> None:
    """A schema outside the plain subset gives the same kind of message through jsonschema."""
    either = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]}
    schema = {"type": "object", "properties": {"a": either}, "required": ["a"], "additionalProperties": False}
    check = compiled_schema(schema)
    assert plain_schema.plain_check(schema) is None
    assert check({"a": "x"}) is None
    assert check({}) == (("a",), "required", "missing")
    assert check({"a": "x", "b": 1}) == (("b",), "additionalProperties", "unexpected")
    assert check({"a": 2}) == (("a",), "minimum", "minimum 3")
    assert check({"a": None}) == (("a",), "anyOf", "anyOf")


@pytest.mark.parametrize(
    ("answer", "defect"),
    [
        ({"ok": True, "outputs": {}}, (("outputs", "total"), "required", "missing")),
        ({"ok": True, "outputs": {"total": "3"}}, (("outputs", "total"), "type", "expected integer")),
        ({"ok": True, "error": "no"}, (("outputs",), "required", "missing")),
        ({"ok": False, "error": 3}, (("error",), "type", "expected string")),
        ({"ok": "yes"}, ((), "anyOf", "anyOf")),
        ({"outputs": {}}, (("ok",), "required", "missing")),
        ("done", ((), "type", "expected object")),
    ],
)
def test_a_choice_names_what_the_meant_alternative_lacks(answer: Any, defect: Any) -> None:
    """A type or a constant tells which alternative is meant; what all of them lack is named otherwise."""
    total = exactly({"total": {"type": "integer"}})
    works = exactly({"ok": {"const": True}, "outputs": total})
    fails = exactly({"ok": {"const": False}, "error": {"type": "string"}})
    assert compiled_schema({"anyOf": [works, fails]})(answer) == defect


UNSAFE = {"pattern": "(a)\\1"}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "https://example.org/schema.json"}, "must be local"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "points at nothing"),
        ({"properties": {"a": {"pattern": "(a)\\1"}}}, "not an RE2 pattern"),
        ({"patternProperties": {"^a": {}}}, "not supported"),
        ({"$id": "http://x"}, "not supported"),
        ({"type": "strin"}, "not valid under any"),
        ({"required": "a"}, "is not of type 'array'"),
        *(
            ({name: {"q": UNSAFE}, "$ref": f"#/{name}/q"}, "points at what is no schema")
            for name in ("default", "const", "x-own")
        ),
        ({"enum": [UNSAFE], "$ref": "#/enum/0"}, "points at nothing"),
        ({"examples": [UNSAFE], "$ref": "#/examples"}, "points at what is no schema"),
        ({"default": {"q": UNSAFE}, "%64efault": {"q": {}}, "$ref": "#/%64efault/q"}, "points at what is no schema"),
        ({"properties": {"patternProperties": {"(a+)+$": {}}}, "$ref": "#/properties"}, "points at what is no schema"),
        ({"properties": {"default": UNSAFE}, "not": {}}, "not an RE2 pattern"),
        ({"$defs": {"examples": {"not": {"$id": "x"}}}, "not": {}}, "not supported"),
        ({"not": {"$schema": "https://json-schema.org/draft/2020-12/schema", "pattern": "a"}}, "at the root only"),
    ],
)
def test_unsafe_schemas_are_refused(schema: dict[str, Any], reason: str) -> None:
    """Nothing is fetched, nothing backtracks, and a malformed schema is named."""
    assert any(reason in problem.reason for problem in schema_problems(schema))


def test_a_schema_that_refers_to_itself_for_ever_is_a_defect() -> None:
    """`{"$ref": "#"}` at the root never ends in jsonschema; here it is a wrong argument."""
    assert compiled_schema({"$ref": "#"})({}) is not None


def test_references_to_schemas_are_followed() -> None:
    """Into $defs, properties (of any name) and the root; patterns there run on RE2, whatever dialect is named."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"a/b": {"type": "string", "pattern": r"^x\z"}},
        "properties": {"default": {"$ref": "#/$defs/a~1b"}, "own": {"$ref": "#/properties/default"}},
        "additionalProperties": {"$ref": "#"},
    }
    assert schema_problems(schema) == ()
    check = compiled_schema(schema)
    assert check({"default": "x", "own": "x", "more": {"more": {"own": "x"}}}) is None
    assert check({"more": {"more": {"own": "x\n"}}}).path == ("more", "more", "own")


# --- effects --------------------------------------------------------------------------------------------------------


def test_a_read_answers_the_declared_outputs() -> None:
    """The outputs come from the object at the pointer; what it lacks is drawn; the state is the same object."""
    task = shop()
    answer, ok, state = apply(task, task.world.state, call("get_order", id="old"))
    assert (answer, ok) == ({"item": "pear", "quantity": 2}, True)
    assert state is task.world.state
    partial = {"orders": {"old": {"item": "pear"}}}
    drawn_answer = apply(task, partial, call("get_order", id="old")).answer
    assert drawn_answer["item"] == "pear"
    assert 1 <= drawn_answer["quantity"] <= 50


def test_a_read_without_outputs_answers_what_is_there() -> None:
    """No outputs: an object as it is, anything else as `result`; one declared output takes a plain value."""
    task = shop(
        tools=[
            tool("whole", {}, effect={"read": "/orders/old"}),
            tool("plain", {}, effect={"read": "/orders/old/quantity"}),
            tool("named", {}, effect={"read": "/orders/old/quantity"}, outputs=outputs(count=NUMBER)),
        ],
        rubric=OPEN,
    )
    answers = [apply(task, task.world.state, call(name)).answer for name in ("whole", "plain", "named")]
    assert answers == [{"item": "pear", "quantity": 2}, {"result": 2}, {"count": 2}]


def test_a_missing_pointer_is_not_found() -> None:
    """A pointer that leads nowhere is an in-world error, also through an argument that looks like a path."""
    task = shop()
    for wrong in ("nope", "", "old/item", "~0", "../old"):
        assert apply(task, task.world.state, call("get_order", id=wrong)).answer == {"error": "not found"}


def test_a_write_changes_the_state_and_nothing_else() -> None:
    """The template is filled with types kept, the old state is untouched, untouched parts are shared."""
    task = shop()
    before = orjson.dumps(task.world.state)
    answer, ok, state = apply(task, task.world.state, ORDER)
    assert (answer, ok) == ({"code": "47"}, True)
    assert state["orders"]["new"] == {"item": "apple", "quantity": 5, "note": "5 of apple", "code": "47"}
    assert orjson.dumps(task.world.state) == before
    assert state["catalogue"] is task.world.state["catalogue"]


def test_an_unmet_requirement_leaks_nothing() -> None:
    """`requires` that differs or is absent: the same error, the same state."""
    task = shop()
    wrong = apply(task, task.world.state, call("place_order", item="pear", quantity=5))
    assert wrong == ({"error": "not possible"}, False, task.world.state)
    assert apply(task, {"orders": {}}, ORDER) == ({"error": "not possible"}, False, {"orders": {}})


@pytest.mark.parametrize(
    ("held", "given_value", "met"), [(25, 25.0, True), (25.0, 25, True), (1, True, False), ("25", 25, False)]
)
def test_requirements_compare_as_json(held: Any, given_value: Any, met: bool) -> None:
    """25 equals 25.0; true is not 1; a string is not a number."""
    effect = {"write": "/done", "value": True, "requires": {"/n": "{n}"}}
    task = shop(tools=[tool("set", {"n": {}}, effect=effect)], rubric=OPEN)
    assert apply(task, {"n": held}, call("set", n=given_value)).ok is met


def test_a_write_needs_its_parent() -> None:
    """Only the last token may be new; `-` appends to an array."""
    assert pointer.write_pointer({"a": [1]}, ("a", "-"), 2) == {"a": [1, 2]}
    assert pointer.write_pointer({"a": [1]}, ("a", "0"), 2) == {"a": [2]}
    assert pointer.write_pointer({}, ("a",), 2) == {"a": 2}
    for tokens in (("x", "y"), ("a", "1"), ("a", "-", "b"), ("a", "0", "b"), ("a", "00")):
        with pytest.raises(pointer.MissingError):
            pointer.write_pointer({"a": [1]}, tokens, 2)


def test_placeholders_reach_into_escaped_names() -> None:
    """An argument is one token, whatever characters it has."""
    task = shop(
        tools=[tool("get", {"k": {}}, effect={"read": "/m/{k}/x~1y"})],
        rubric=OPEN,
    )
    state = {"m": {"a/b": {"x/y": 1}, "7": {"x/y": 2}}}
    assert apply(task, state, call("get", k="a/b")).answer == {"result": 1}
    assert apply(task, state, call("get", k=7.0)).answer == {"result": 2}
    assert not apply(task, state, call("get", k=None)).ok


def test_whole_placeholders_keep_their_type() -> None:
    """`"{x}"` is the argument itself; inside a longer string it is formatted."""
    arguments = {"n": 5, "t": True, "l": [1], "s": "x"}
    assert effects.fill(["{n}", "{t}", "{l}", "a {n} {t} {l} {s} {none}"], arguments) == [
        5,
        True,
        [1],
        "a 5 true [1] x ",
    ]
    assert effects.fill("{none}", arguments) is None


def test_placeholders_in_names_are_filled_as_text() -> None:
    """A name is a string, whatever the argument is."""
    template = {"{s}": 1, "no {n}": "{n}", "{n}": {"{l}": 2}, "{none}": 3, "s": 4}
    filled = effects.fill(template, {"n": 5, "l": [1], "s": "x"})
    assert filled == {"x": 1, "no 5": 5, "5": {"[1]": 2}, "": 3, "s": 4}


# --- drawn outputs --------------------------------------------------------------------------------------------------


def test_drawn_outputs_depend_on_the_call_alone() -> None:
    """Equal calls draw equal answers in every state; other arguments and tasks draw others."""
    task, other = shop(), shop(id="shop-2")
    first = apply(task, task.world.state, call("shop_hours", day="Monday"))
    assert apply(task, {}, call("shop_hours", day=" Monday")).answer == first.answer
    assert apply(task, {}, call("shop_hours", day="Sunday")).answer != first.answer
    assert apply(other, {}, call("shop_hours", day="Monday")).answer != first.answer
    assert apply(task, {}, call("rush_order", item="apple")).answer == {"status": "ok"}


@pytest.mark.parametrize(
    "schema",
    [
        TEXT,
        {"type": "string", "maxLength": 3},
        {"type": "string", "minLength": 9},
        {"type": "string", "minLength": 8.0, "maxLength": 9.0},
        {"type": "string", "minLength": 25},
        {"type": "string", "minLength": LONGEST},
        {"enum": ["a", 2, None]},
        {"const": {"a": 1}},
        {"type": "integer"},
        {"type": "integer", "minimum": 10, "maximum": 12},
        {"type": "integer", "minimum": 5000},
        {"type": "integer", "maximum": -4},
        {"type": "number", "minimum": 0.5, "maximum": 0.75},
        {"type": "boolean"},
        {"type": ["null", "string"]},
        {"type": "array", "items": TEXT},
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": TEXT}, "required": ["a", "b"]},
    ],
)
def test_drawn_values_fit_their_schema(schema: dict[str, Any]) -> None:
    """Whatever is drawn is valid, and not always the same."""
    values = [drawn_value(str(seed).encode(), "f", schema) for seed in range(200)]
    assert all(jsonschema.Draft202012Validator(schema).is_valid(value) for value in values)
    fixed = "const" in schema or schema.get("type") == "array"
    assert (len({orjson.dumps(value) for value in values}) == 1) == fixed


def test_answers_are_the_same_in_another_process() -> None:
    """Byte-identical across processes with another hash seed."""
    script = (
        "from tests.parts.worlds import shop, call; from engine.world.admission import content\n"
        "from engine.world.tools import apply\n"
        "print(content(apply(shop(), {}, call('shop_hours', day='Monday')).answer))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {orjson.dumps(apply(shop(), {}, call("shop_hours", day="Monday")).answer) + b"\n"}
