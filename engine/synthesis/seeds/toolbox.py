"""Tools of a user's own, taken into a seed as they are, or rewritten where a pack cannot hold them so.

A rewriting admits the same arguments: a name of other characters, `$id` at the root, a tuple of draft-07, a pattern
that every name of a property matches. A tool that no rewriting saves is left out. Each change has a note that says why,
and what helps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.importing.report import Note
from engine.packs.pack import tool_json
from engine.packs.problems import TOOL_NAME, nesting_problems, tool_problems
from engine.schema.validate import map_inner_schemas
from engine.task import Tool
from engine.types import Json

_LONGEST_NAME = 64
_EVERY_NAME = frozenset({"", "^", ".*", "^.*", ".*$", "^.*$", "^(.*)$", "(.*)"})


class Toolbox:
    """Collects the tools of one file, and what became of each."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self._notes: list[Note] = []
        self._left_out: Counter[tuple[str, str]] = Counter()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What was taken in, in the order of the file."""
        return tuple(self._tools.values())

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was rewritten or left out."""
        counted = (Note(place, why, kept=False, count=count) for (place, why), count in self._left_out.items())
        return (*self._notes, *counted)

    def rewrote(self, place: str, how: str) -> None:
        """Note a rewriting that changes no meaning."""
        self._notes.append(Note(place, how))

    def left_out(self, place: str, why: str) -> None:
        """Note what is no part of any tool, with the remedy; the same of the same place is counted."""
        self._left_out[place, why] += 1

    def add(self, place: str, tool: Tool) -> None:
        """Take a tool in, rewritten where a pack needs it, or note why it cannot be."""
        parameters = _Rewriting(self, f"{place}.parameters").root(tool.parameters)
        outputs = None if tool.outputs is None else _Rewriting(self, f"{place}.outputs").root(tool.outputs)
        made = replace(tool, name=self._name(place, tool.name), parameters=parameters, outputs=outputs)
        if made.name in self._tools:
            self.left_out(place, f"has the name {made.name!r} of a tool before it: rename it")
            return
        if not made.description.strip():
            self.left_out("description", "missing in the file: a teacher and an agent have only the name to go by")
        if self._sound(place, made):
            self._tools[made.name] = made
        elif outputs is not None and self._sound(place, without := replace(made, outputs=None)):
            self._tools[made.name] = without

    def _name(self, place: str, name: str) -> str:
        if TOOL_NAME.fullmatch(name):
            return name
        made = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")[:_LONGEST_NAME]
        self.rewrote(f"{place}.name", f"{name!r} is now {made!r}: a name has at most 64 letters, digits, '_', '-', '.'")
        return made

    def _sound(self, place: str, tool: Tool) -> bool:
        """Whether a pack can hold the tool; what is wrong with it is noted."""
        # Nesting first: what nests too deeply cannot be looked at.
        nested = [item._replace(field=place) for item in nesting_problems({"tools": [tool_json(tool)]})]
        found = nested or list(tool_problems(tool, place))
        for field, reason, remedy in found:
            part = "the answer is left open" if field.startswith(f"{place}.outputs") else "the tool cannot be used"
            self.left_out(field, f"{reason} ({remedy}): {part}")
        return not found


class _Rewriting:
    """The lossless rewriting of one schema of a tool."""

    def __init__(self, box: Toolbox, place: str) -> None:
        self._box, self._place = box, place

    def root(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The schema as a pack holds it, as far as rewriting goes."""
        if "$id" in schema:
            self._box.rewrote(f"{self._place}.$id", "taken out: references stay inside of the schema")
            schema = {name: body for name, body in schema.items() if name != "$id"}
        return dict(self._held(schema, ""))

    def _held(self, schema: Json, where: str) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        made = map_inner_schemas(schema, lambda inner, place: self._held(inner, where + place))
        if where and "$schema" in made:
            del made["$schema"]
            self._box.rewrote(f"{self._place}{where}.$schema", "taken out: the root's holds for all of the schema")
        patterns = made.get("patternProperties")
        if (
            isinstance(patterns, Mapping)
            and len(patterns) == 1
            and patterns.keys() <= _EVERY_NAME
            and not made.get("properties")
        ):
            self._every_name(made, where)
        if isinstance(made.get("items"), list):
            made["prefixItems"] = made.pop("items")
            if "additionalItems" in made:
                made["items"] = made.pop("additionalItems")
            self._box.rewrote(f"{self._place}{where}.items", "a list of schemas is now prefixItems")
        return made

    def _every_name(self, made: dict[str, Any], where: str) -> None:
        """A pattern that every name matches leaves nothing to additionalProperties: its schema goes there."""
        [made["additionalProperties"]] = made.pop("patternProperties").values()
        self._box.rewrote(
            f"{self._place}{where}.patternProperties", "its one pattern matches every name: additionalProperties"
        )
