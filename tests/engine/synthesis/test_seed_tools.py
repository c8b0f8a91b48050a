"""engine.synthesis.seeds: tools of a user's own, from OpenAI functions, an MCP reply and OpenAPI 3 documents."""

import copy

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.packs.pack import tool_json
from engine.packs.problems import tool_problems
from engine.synthesis.seeds.reading import read_seeds
from engine.synthesis.seeds.references import MOST_SCHEMAS
from tests.parts.places import TESTS

FLORIST = TESTS / "data/seeds/florist-3.0.json"
FERRY = TESTS / "data/seeds/ferry-3.1.yaml"
TEXT = {"type": "string"}
PARAMETERS = {"type": "object", "properties": {"flower": TEXT}, "required": ["flower"]}
GET_STOCK = {"name": "get_stock", "description": "What there is of a flower.", "parameters": PARAMETERS}
MCP = {
    "tools": [
        {
            "name": "get_stock",
            "title": "Stock",
            "description": "What there is of a flower.",
            "inputSchema": PARAMETERS,
            "outputSchema": {"type": "object", "properties": {"price": {"type": "number"}}},
            "annotations": {"readOnlyHint": True},
        },
        {"name": "list_orders", "description": "All orders.", "inputSchema": {"type": "object"}},
    ]
}


def read(directory, value, **options):
    """The one file of seeds with this content."""
    path = directory / "tools.json"
    path.write_bytes(value if isinstance(value, bytes) else orjson.dumps(value))
    [file] = read_seeds([path], **options)
    return file


def tools(file):
    """Its tools by name."""
    [seed] = file.seeds
    return {tool.name: tool for tool in seed.tools}


def notes(file, *, kept):
    """What became of what, by place."""
    return {note.field: note.became for note in file.notes if note.kept is kept}


def refused(directory, value, **options):
    """The sentences with which this content is refused."""
    with pytest.raises(ConfigError) as error:
        read(directory, value, **options)
    return str(error.value)


# --- declared -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [{"type": "function", "function": GET_STOCK}],
        [GET_STOCK],
        [{"type": "function", **GET_STOCK}],
        {"model": "m", "messages": [], "tools": [{"type": "function", "function": GET_STOCK}]},
        [{"name": "get_stock", "description": GET_STOCK["description"], "input_schema": PARAMETERS}],
    ],
)
def test_functions_are_kept_as_they_are(tmp_path, value):
    """In every envelope in which they are written, and under one id."""
    file = read(tmp_path, value)
    assert file.form == "OpenAI functions"
    assert file.notes == ()
    assert [tool_json(tool) for tool in tools(file).values()] == [{"type": "function", "function": GET_STOCK}]
    assert file.seeds[0].id == read(tmp_path, [GET_STOCK]).seeds[0].id


@pytest.mark.parametrize("value", [MCP, {"jsonrpc": "2.0", "id": 1, "result": MCP}])
def test_an_mcp_reply_with_and_without_its_envelope(tmp_path, value):
    """What a tool of ours has no member for is named."""
    file = read(tmp_path, value)
    assert file.form == "MCP tools/list"
    assert tools(file)["get_stock"].outputs == MCP["tools"][0]["outputSchema"]
    assert tools(file)["list_orders"].parameters == {"type": "object"}
    assert notes(file, kept=False) == dict.fromkeys(
        ["tools[].title", "tools[].annotations"], "is no part of a tool here"
    )


def test_the_rest_of_a_list_in_pages_is_named(tmp_path):
    """The server has more tools than these."""
    file = read(tmp_path, {"result": {**MCP, "nextCursor": "p2"}, "jsonrpc": "2.0", "id": 1})
    assert "ask with this cursor too" in notes(file, kept=False)["nextCursor"]


def test_a_server_that_failed_is_quoted(tmp_path):
    """Without what a terminal would obey."""
    said = refused(tmp_path, {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "\x1b[2Jno"}})
    assert "tools.json: error: the server failed: '\\x1b[2Jno' (ask it for tools/list again)" in said


def test_our_own_members_of_a_tool_are_read(tmp_path):
    """So that a tool of a pack is a seed as it stands."""
    given = {
        "type": "function",
        "function": GET_STOCK,
        "outputs": {"type": "object"},
        "effect": {"read": "/stock/{flower}"},
    }
    assert [tool_json(tool) for tool in tools(read(tmp_path, [given])).values()] == [given]


@pytest.mark.parametrize(
    ("change", "place", "became", "result"),
    [
        ({"name": "get stock!"}, "tools[0].name", "'get stock!' is now 'get_stock'", {}),
        ({"name": "x" * 80}, "tools[0].name", f"is now {'x' * 64!r}", {}),
        ({"parameters": None}, "tools[0].parameters", "declares none", {"type": "object", "properties": {}}),
        (
            {"parameters": {"$id": "https://x.example/a", **PARAMETERS}},
            "tools[0].parameters.$id",
            "taken out",
            PARAMETERS,
        ),
        (
            {"parameters": {"type": "object", "patternProperties": {"^(.*)$": TEXT}}},
            "tools[0].parameters.patternProperties",
            "additionalProperties",
            {"type": "object", "additionalProperties": TEXT},
        ),
        (
            {"parameters": {"properties": {"at": {"items": [TEXT, {"type": "integer"}], "additionalItems": False}}}},
            "tools[0].parameters.properties.at.items",
            "prefixItems",
            {"properties": {"at": {"prefixItems": [TEXT, {"type": "integer"}], "items": False}}},
        ),
        (
            {"parameters": {"properties": {"at": {"$schema": "http://json-schema.org/draft-07/schema#", **TEXT}}}},
            "tools[0].parameters.properties.at.$schema",
            "taken out",
            {"properties": {"at": TEXT}},
        ),
    ],
)
def test_what_a_pack_cannot_hold_is_rewritten(tmp_path, change, place, became, result):
    """Where nothing is lost by it; a note says how."""
    file = read(tmp_path, [GET_STOCK | change])
    assert became in notes(file, kept=True)[place]
    [tool] = tools(file).values()
    assert list(tool_problems(tool, "tool")) == []
    assert tool.parameters == (result or PARAMETERS)


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        (
            {"parameters": {"type": "object", "patternProperties": {"^x-": TEXT}}},
            "tools[0].parameters.schema.patternProperties",
            "declare the properties",
        ),
        (
            {"parameters": {"type": "object", "properties": {"at": {"$ref": "https://x.example/a.json"}}}},
            "tools[0].parameters.schema.properties.at.$ref",
            "$ref must be local",
        ),
        ({"parameters": {"type": "array"}}, "tools[0].parameters.type", "must be 'object'"),
        (
            {"parameters": {"type": "object", "properties": {"at": {"type": "strnig"}}}},
            "tools[0].parameters.properties.at.type",
            "'strnig' is not valid",
        ),
        ({"parameters": [TEXT]}, "tools[0].parameters", "is no object"),
        ({"name": 7}, "tools[0].name", "is no text"),
        ({"name": "list_orders"}, "tools[1]", "has the name 'list_orders' of a tool before it"),
        ({"type": "web_search"}, "tools[0]", "is no function ('web_search')"),
        ({"effect": {"read": "/{colour}"}}, "tools[0].effect.read", "{colour} is no parameter of get_stock"),
    ],
)
def test_a_tool_that_no_rewriting_saves_is_left_out(tmp_path, change, place, reason):
    """The others stay; without any the file is refused with the same sentence."""
    broken = GET_STOCK | change
    other = {"name": "list_orders", "description": "All.", "parameters": {"type": "object"}}
    listed = [other, broken] if place == "tools[1]" else [broken, other]
    file = read(tmp_path, listed)
    assert list(tools(file)) == ["list_orders"]
    assert reason in notes(file, kept=False)[place]
    if place != "tools[1]":
        said = refused(tmp_path, [broken])
        assert "has no tool that can be used" in said
        assert f"{place}: " in said
        assert reason in said


def test_an_answer_that_cannot_be_held_is_left_open(tmp_path):
    """The agent sees nothing of it, so the tool stays."""
    file = read(tmp_path, [GET_STOCK | {"outputs": {"type": "array", "items": TEXT}}])
    assert tools(file)["get_stock"].outputs is None
    assert "the answer is left open" in notes(file, kept=False)["tools[0].outputs.type"]


def test_a_tool_without_a_description_is_named(tmp_path):
    """It can be used, but nobody knows what for."""
    file = read(tmp_path, [{"name": "f", "parameters": {"type": "object"}}])
    assert "missing in the file" in notes(file, kept=False)["description"]
    assert list(tools(file)) == ["f"]


def test_the_order_of_tools_does_not_change_the_id_and_their_content_does(tmp_path):
    """So that a ledger finds what was paid for."""
    one, other = GET_STOCK, GET_STOCK | {"name": "get_price"}
    first = read(tmp_path, [one, other]).seeds[0].id
    assert read(tmp_path, [other, one]).seeds[0].id == first
    assert read(tmp_path, [one, other | {"description": "x"}]).seeds[0].id != first


# --- OpenAPI --------------------------------------------------------------------------------------------------------


def test_a_document_of_openapi_3_0():
    """Names, arguments and answers of every operation that a tool can have."""
    [file] = read_seeds([FLORIST])
    made = tools(file)
    assert (file.form, file.seeds[0].trade) == ("OpenAPI 3.0.3", "florist orders api")
    assert list(made) == ["listFlowers", "place_order", "get_orders_id", "changeOrder", "tree"]
    assert made["place_order"].description == "Place an order.\nDelivered the next day."
    assert made["listFlowers"].parameters == {
        "type": "object",
        "properties": {
            "colour": {"type": ["string", "null"], "examples": ["red"], "description": "Only of this colour."},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "default": 20},
        },
        "required": [],
        "additionalProperties": False,
    }
    flower = {"type": "object", "properties": {"name": TEXT, "price": {"type": "number"}}}
    assert made["listFlowers"].outputs == {
        "type": "object",
        "properties": {"result": {"type": "array", "items": flower}},
        "required": ["result"],
    }


def test_what_one_side_alone_sends_is_not_asked_of_the_other():
    """What is readOnly is no argument, what is writeOnly no answer; `allOf` becomes one object."""
    [file] = read_seeds([FLORIST])
    order = tools(file)["place_order"]
    assert order.parameters == {
        "type": "object",
        "properties": {"flower": TEXT, "stems": {"type": "integer", "minimum": 1}, "secret": TEXT},
        "required": ["flower", "stems"],
        "additionalProperties": False,
    }
    assert order.outputs == {
        "type": "object",
        "description": "An order.",
        "properties": {
            "price": {"type": "number"},
            "id": TEXT,
            "flower": TEXT,
            "stems": {"type": "integer", "minimum": 1},
        },
        "required": ["price", "flower", "stems"],
    }


def test_what_openapi_has_and_a_tool_has_not_is_named_by_place():
    """What was rewritten, and what was left out."""
    [file] = read_seeds([FLORIST])
    lost = notes(file, kept=False)
    rewritten = notes(file, kept=True)
    assert rewritten.pop("paths./orders.post.name").startswith("'place order!' is now 'place_order': a name has ")
    assert rewritten == {
        "paths./flowers.get.responses.200": "is no object: it is the member 'result' of the answer",
        "paths./orders/{id}.patch.requestBody": "is the argument 'body' as a whole",
    }
    assert lost.keys() == {
        "parameters in header",
        "paths./categories.delete",
        "paths./categories.get.responses.200.properties.inside.items",
        "paths./orders/{id}.head",
        "paths./orders/{id}.put",
        "paths./orders/{id}.put.requestBody",
        "security",
    }
    assert "leads to another file: bundle them" in lost["paths./categories.delete"]
    assert "contains itself: cut off here" in lost["paths./categories.get.responses.200.properties.inside.items"]
    assert "neither JSON nor a form" in lost["paths./orders/{id}.put"]


def test_a_body_with_a_name_that_is_taken_stays_whole():
    """`id` is in the path and in the body."""
    [file] = read_seeds([FLORIST])
    body = {"type": "object", "properties": {"id": TEXT, "day": TEXT}}
    assert tools(file)["changeOrder"].parameters == {
        "type": "object",
        "properties": {"id": {**TEXT, "description": "Number of the order."}, "body": body},
        "required": ["id"],
        "additionalProperties": False,
    }
    assert tools(file)["changeOrder"].outputs is None


def test_a_document_of_openapi_3_1_in_yaml():
    """Scalars as YAML 1.2 has them: dates, times and `no` are texts, keys too."""
    [file] = read_seeds([FERRY])
    made = tools(file)
    assert (file.form, file.seeds[0].trade) == ("OpenAPI 3.1.0", "ferry bookings")
    assert made["list_crossings"].parameters["properties"] == {
        "day": {"type": "string", "format": "date", "examples": ["2027-05-14"]},
        "departure": {"type": "string", "enum": ["07:30", "15:00", "no"]},
    }
    assert made["list_crossings"].parameters["required"] == ["day"]
    assert made["list_crossings"].outputs["properties"]["crossings"]["type"] == ["array", "null"]
    assert made["book"].parameters == {
        "type": "object",
        "properties": {"crossing": TEXT, "cars": {"type": "integer", "const": 1}},
        "required": [],
        "additionalProperties": TEXT,
    }
    assert made["book"].outputs == {"type": "object", "description": "What was booked.", "properties": {"code": TEXT}}


def test_json_and_yaml_of_a_document_are_one_seed(tmp_path):
    """YAML is a way of writing it."""
    [file] = read_seeds([FLORIST])
    same = read(
        tmp_path, yaml.safe_dump(orjson.loads(FLORIST.read_bytes()), allow_unicode=True, sort_keys=False).encode()
    )
    assert same.seeds == file.seeds


@pytest.mark.parametrize(
    ("schema", "result"),
    [
        ({"nullable": True, "type": "string", "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"nullable": True, "allOf": [{"$ref": "#/x/Text"}]}, {"type": ["string", "null"]}),
        ({"nullable": True, "oneOf": [TEXT]}, {"anyOf": [{"oneOf": [TEXT]}, {"type": "null"}]}),
        ({"maximum": 5, "exclusiveMaximum": False}, {"maximum": 5}),
        ({"$ref": "#/x/Text", "description": "Said."}, {"description": "Said.", "type": "string"}),
        ({"allOf": [{"minLength": 1}, {"minLength": 2}]}, {"allOf": [{"minLength": 1}, {"minLength": 2}]}),
        (
            {"allOf": [{"properties": {"a": TEXT}, "additionalProperties": False}, {"properties": {"b": TEXT}}]},
            {"allOf": [{"properties": {"a": TEXT}, "additionalProperties": False}, {"properties": {"b": TEXT}}]},
        ),
        (
            {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"a": {"type": "integer"}}}]},
            {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"a": {"type": "integer"}}}]},
        ),
        ({"properties": {"$ref": {"$ref": "#/x/Text"}}}, {"properties": {"$ref": TEXT}}),
        ({"$ref": "#/x/with~1slash%20s"}, {"type": "integer"}),
    ],
)
def test_schemas_of_openapi_become_plain_ones(tmp_path, schema, result):
    """Keywords of 3.0 in words of draft 2020-12, references written out."""
    shared = {"Text": TEXT, "with/slash s": {"type": "integer"}}
    file = read(tmp_path, document(schema, x=shared))
    assert tools(file)["f"].parameters["properties"]["a"] == result


def document(schema, **more):
    """A document with one operation, which has one parameter of this schema."""
    parameters = [{"name": "a", "in": "query", "schema": schema}]
    operation = {"operationId": "f", "summary": "F.", "parameters": parameters, "responses": {}}
    return {"openapi": "3.0.0", "paths": {"/f": {"get": operation}}, **more}


def test_an_operations_own_parameters_go_before_its_paths(tmp_path):
    """What stands in the path is required whatever is said; what stands in the query too is named."""
    shared = [{"name": "a", "in": "path", "schema": TEXT}, {"name": "b", "in": "query", "schema": TEXT}]
    own = [{"name": "b", "in": "query", "schema": {"type": "integer"}}, {"name": "a", "in": "query", "schema": TEXT}]
    item = {"parameters": shared, "get": {"operationId": "f", "summary": "F.", "parameters": own}}
    file = read(tmp_path, {"openapi": "3.0.0", "paths": {"/f/{a}": item}})
    made = tools(file)["f"].parameters
    assert (made["properties"], made["required"]) == ({"a": TEXT, "b": {"type": "integer"}}, ["a"])
    assert notes(file, kept=False) == {"paths./f/{a}.get.parameters.a": "stands in the path too"}


def test_a_body_that_may_be_left_out_stays_whole_where_it_requires_something(tmp_path):
    """Else its members would be required, or could be given in part."""
    body = {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}
    content = {"application/json": {"schema": body}}
    operation = {"operationId": "f", "summary": "F.", "requestBody": {"content": content}}
    made = tools(read(tmp_path, {"openapi": "3.0.0", "paths": {"/f": {"post": operation}}}))["f"].parameters
    assert (made["properties"], made["required"]) == ({"body": body}, [])


def test_the_first_answer_in_json_is_the_answer(tmp_path):
    """By its code, wherever it stands; what is not JSON is passed over."""
    answers = {"202": _answer("b"), "201": _answer("a"), "200": {"content": {"text/csv": {}}}, "500": _answer("c")}
    operation = {"operationId": "f", "summary": "F.", "responses": answers}
    file = read(tmp_path, {"openapi": "3.0.0", "paths": {"/f": {"get": operation}}})
    assert tools(file)["f"].outputs == {"type": "object", "properties": {"a": TEXT}}
    assert notes(file, kept=False) == {"paths./f.get.responses.200": "is 'text/csv', not JSON"}


def _answer(name):
    return {"content": {"application/json": {"schema": {"type": "object", "properties": {name: TEXT}}}}}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"swagger": "2.0", "paths": {}}, "swagger: is '2.0', not 3.x (convert it: `npx swagger2openapi FILE`"),
        ({"openapi": "3.0.0"}, "paths: has no path"),
        (document({"$ref": "#/nowhere"}), "$ref '#/nowhere' points at nothing"),
        (document({"$ref": "other.yaml"}), "leads to another file: bundle them, `redocly bundle FILE` does"),
        (
            document({}, paths={"/f": {"get": {"parameters": [{"$ref": "#/p"}]}}}, p={"$ref": "#/p"}),
            "$ref '#/p' leads back to itself",
        ),
        (document({}, paths={"/f": 7}), "paths./f: is no object"),
        (document({}, paths={"/f": {"get": 7}}), "paths./f.get: is no object"),
    ],
)
def test_what_is_wrong_with_a_document_is_said(tmp_path, value, sentence):
    """With its place and a remedy."""
    assert sentence in refused(tmp_path, value)


def test_schemas_that_multiply_at_each_step_are_given_up(tmp_path):
    """Eight references in each of six schemas would write out a quarter of a million."""
    wide = {str(n): {"prefixItems": [{"$ref": f"#/x/{n + 1}"}] * 8} for n in range(6)}
    said = refused(tmp_path, document({"$ref": "#/x/0"}, x=wide | {"6": TEXT}))
    assert f"has more than {MOST_SCHEMAS} schemas" in said


def test_a_chain_of_references_is_given_up(tmp_path):
    """Long before Python's own depth."""
    chain = {str(n): {"not": {"$ref": f"#/x/{n + 1}"}} for n in range(3000)}
    assert "levels, references written out" in refused(tmp_path, document({"$ref": "#/x/0"}, x=chain | {"3000": TEXT}))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("openapi: 3.0.0\npaths: &a\n  x: 1\ny: *a\n", "line 4: not YAML: aliases (*NAME) are not read"),
        ("openapi: 3.0.0\n  paths: {\n", "line 2: not YAML: "),
        ("openapi: 3.0.0\nopenapi: 3.0.0\n", "line 2: not YAML: a key is no text, or occurs twice"),
        (
            "openapi: 3.0.0\nx: !!python/object/apply:os.system [x]\n",
            "line 2: not YAML: could not determine a constructor",
        ),
        ("openapi: 3.0.0\nx: !!binary aGk=\n", "not JSON in YAML: x: bytes is no JSON value"),
        ("openapi: 3.0.0\nx: \x00\n", "not YAML: unacceptable character #x0000"),
        ('openapi: 3.0.0\nx: "\\ud800"\n', "not JSON in YAML: x: half a surrogate pair"),
    ],
)
def test_yaml_that_is_none_or_no_json_is_refused(tmp_path, text, sentence):
    """With the line."""
    assert sentence in refused(tmp_path, text.encode())


# --- whatever comes -------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$ref", "type", "properties", "items", "allOf", "nullable", "required", "enum", "schema", "in", "name"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.data())
def test_a_document_with_anything_anywhere_ends_in_seeds_or_a_sentence(tmp_path_factory, data):
    """No part of it is believed to be what it should be; every tool that comes out is one of a pack."""
    value = orjson.loads(data.draw(st.sampled_from([FLORIST.read_bytes(), orjson.dumps(MCP)])))
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(_JSON)
    try:
        file = read(tmp_path_factory.getbasetemp(), orjson.dumps(value))
    except ConfigError as error:
        assert "tools.json: " in str(error)  # noqa: PT017 - many are refused
    else:
        assert [problem for seed in file.seeds for tool in seed.tools for problem in tool_problems(tool, "t")] == []


def _places(value):
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield value, key
        yield from _places(inner)
