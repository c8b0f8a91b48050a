"""engine.commands.pack_seeds: what a user is told of a file before a teacher is paid."""

import orjson
from click.testing import CliRunner

from engine.cli import cli
from engine.errors import ConfigError
from tests.parts.places import TESTS

FLORIST = TESTS / "data/seeds/florist-3.0.json"


def invoke(*arguments):
    """The result of `pack seeds`."""
    return CliRunner().invoke(cli, ["pack", "seeds", *map(str, arguments)])


def test_the_shipped_personas_are_listed():
    """The first of them, with how many more there are, and of how many trades."""
    result = invoke("personas")
    assert result.exit_code == 0
    assert "personas, JSON Lines: 326 seeds, " in result.output
    assert "tram-driver-porto" in result.output
    assert "… and 316 more (--json has all)" in result.output


def test_the_tools_of_a_document_are_listed_with_what_became_of_the_rest(tmp_path):
    """Every place that was rewritten or left out, once."""
    rules = tmp_path / "rules.txt"
    rules.write_text("Never on Sundays.")
    result = invoke(FLORIST, "--policy", rules)
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert "5 tools: listFlowers, place_order, get_orders_id, changeOrder, tree (with a policy)" in words
    assert "rewritten: paths./orders.post.name: 'place order!' is now 'place_order'" in words
    assert "left out: paths./categories.delete: $ref 'common.yaml#/Thing' leads to another file" in words


def test_json_has_all_of_it():
    """Tools as a pack has them."""
    [file] = orjson.loads(invoke(FLORIST, "--json").output)["files"]
    [seed] = file["seeds"]
    assert (file["form"], seed["kind"], len(seed["tools"])) == ("OpenAPI 3.0.3", "domain", 5)
    assert seed["tools"][0]["function"]["name"] == "listFlowers"
    assert {
        "place": "paths./orders/{id}.head",
        "what": "is no operation for a tool",
        "kept": False,
        "count": 1,
    } in file["notes"]


def test_nothing_of_a_file_reaches_the_terminal_as_a_command(tmp_path):
    """Neither escapes of terminals nor markup."""
    path = tmp_path / "api.json"
    operation = {"operationId": "f", "summary": "F.", "responses": {}}
    paths = {"/f": {"get": operation}, "/\x1b[2J": 7}
    path.write_bytes(orjson.dumps({"openapi": "3.0.0", "info": {"title": "\x07[red]in[/red]\x1b]0;y"}, "paths": paths}))
    result = invoke(path)
    assert result.exit_code == 0
    assert "is no object" in result.output
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert "[red]in[/red]" in result.output
    path.write_bytes(orjson.dumps({"openapi": "3.0.0", "paths": {"/\x1b[2J": 7}}))
    assert r"paths./\x1b[2J: is no object" in str(invoke(path).exception)


def test_what_cannot_be_read_ends_in_a_sentence(tmp_path):
    """As of every command."""
    result = invoke(tmp_path / "nowhere")
    assert isinstance(result.exception, ConfigError)
    assert "cannot be read" in str(result.exception)
