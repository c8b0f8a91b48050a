"""The generated parts of docs/packs.md: fields, effects and checks, as `synth-engine pack schema` has them; admission.

``python -m tests.bar.packs_page --write`` writes them anew; `messages` has what the page's errors must explain.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from engine.packs.effect_forms import EFFECTS
from engine.packs.line_schema import header_schema, task_schema
from engine.reward.check_kinds import CHECKS
from engine.synthesis.admission.admit import TESTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "packs.md"
SOURCES = (
    *("engine/packs/pack.py", "engine/packs/problems.py", "engine/reward/check_kinds.py"),
    *("engine/packs/check_flaws.py", "engine/packs/fact_flaws.py", "engine/packs/tool_flaws.py"),
    *("engine/packs/reach.py", "engine/schema/draw.py", "engine/schema/validate.py"),
)
_REASON_AT = {"_problem": 3, "Found": 1, "CheckProblem": 1, "SchemaProblem": 1, "UnreachedError": 0}
"""Where what makes a problem takes its reason."""
_KINDS = {"string": "text", "boolean": "true or false", "integer": "integer", "object": "object"}
_OWN_TABLE = frozenset({"effect", "check"})

Schema = Mapping[str, Any]


def generated() -> dict[str, str]:
    """The generated parts by their mark."""
    forms = [[f"`{_json(form.example)}`", form.says] for form in EFFECTS]
    kinds = [[f"`{name}`", kind.says, f"`{_json({name: kind.example})}`"] for name, kind in CHECKS.items()]
    tests = [[f"`{name}`", f"{test.passes}."] for name, test in TESTS.items()]
    codes = [
        [f"`{code}`", f"`{name}`", f"{means}."] for name, test in TESTS.items() for code, means in test.codes.items()
    ]
    heads = ["field", "holds", "without it", "means"]
    return {
        "header": _table(heads, _Fields({}).rows(header_schema())),
        "fields": _table(heads, _Fields(task_schema()["$defs"]).rows(task_schema())),
        "effects": _table(["effect", "means"], forms),
        "checks": _table(["check", "is met when", "example"], kinds),
        "admission": _table(["test", "a task passes it if"], tests),
        "codes": _table(["code", "of", "means"], codes),
    }


def renewed(page: str) -> str:
    """The page with its generated parts made anew."""
    for mark, part in generated().items():
        whole = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        page, count = whole.subn(lambda found, part=part: f"{found[1]}{part}{found[2]}", page)  # type: ignore[misc]
        assert count == 1, f"docs/packs.md has {count} parts <!-- {mark} -->"
    return page


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class _Fields:
    """The rows of a table of fields, those of a definition only where it is met first."""

    def __init__(self, definitions: Schema) -> None:
        self._definitions = definitions
        self._listed: dict[str, str] = {}

    def rows(self, schema: Schema, place: str = "") -> Iterator[list[str]]:
        """A row for every field of an object, followed by those of what it holds."""
        for name, inner in schema["properties"].items():
            path, absent = f"{place}{name}", f"`{_json(inner.get('default', {}))}`"
            step, held = self._held(inner)
            first = self._listed.setdefault(held, path) if held in self._definitions else path
            again = "" if first == path else f" Its fields are those of `{first}{step}`."
            required = "required" if name in schema.get("required", ()) else absent
            yield [f"`{path}`", self._kind(inner), required, f"{inner['description']}{again}"]
            below = self._definitions.get(held, inner)
            if first == path and "properties" in below:
                yield from self.rows(below, f"{path}{step}.")

    def _held(self, schema: Schema) -> tuple[str, str]:
        """The step from a field to the objects in it, and the name of their definition."""
        for step, inner in (("[]", schema.get("items")), (".NAME", schema.get("additionalProperties"))):
            if isinstance(inner, Mapping):
                return step, _name(inner)
        return "", _name(schema)

    def _kind(self, schema: Schema) -> str:
        """What a field holds, in words."""
        if "anyOf" in schema:
            return f"{self._kind(schema['anyOf'][0])}, or null"
        name = _name(schema)
        if name in _OWN_TABLE:
            return f"[{name}](#{name}s)"
        found = self._definitions.get(name, schema)
        if "const" in found:
            return f"`{_json(found['const'])}`"
        if "enum" in found:
            return ", ".join(f"`{_json(value)}`" for value in found["enum"])
        if found.get("type") == "array":
            return f"list of {self._kind(found['items'])}s"
        if isinstance(found.get("additionalProperties"), Mapping):
            return "object, by name"
        return _KINDS.get(found.get("type", ""), "any JSON")


def _name(schema: Schema) -> str:
    """The name of the definition that a schema points at, or null besides it; empty for any other."""
    pointing = next((part for part in schema.get("anyOf", ()) if part != {"type": "null"}), schema)
    return str(pointing.get("$ref", "")).rpartition("/")[2]


def _json(value: Any) -> str:
    """JSON as a reader writes it, a space after each colon and comma outside of texts."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', orjson.dumps(value).decode())
    return "".join(part if part.startswith('"') else re.sub(r"([:,])", r"\1 ", part) for part in parts)


# --- what errors say ------------------------------------------------------------------------------------------------


def messages() -> Iterator[tuple[str, str]]:
    """Where a reason is written in the sources, and the longest text in it that never changes."""
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (at := _REASON_AT.get(_called(node.func))) is not None:
                texts = [part for argument in node.args[at : at + 1] for part in _texts(argument)]
                if texts:
                    yield f"{source}:{node.lineno}", max(texts, key=len).strip()


def _called(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _texts(argument: ast.expr) -> list[str]:
    return [part.value for part in ast.walk(argument) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def main() -> None:
    """Print the generated parts, or write them into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bar.packs_page", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write them into docs/packs.md")
    if parser.parse_args().write:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write("\n".join(generated().values()))


if __name__ == "__main__":
    main()
