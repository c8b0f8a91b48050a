"""YAML documents as JSON values, by YAML 1.2's core schema, which OpenAPI prescribes.

PyYAML follows YAML 1.1, where `no` is false, `15:00` is 900 and `012` is 10; here they are texts. Aliases are refused:
a few lines of them describe more nodes than any memory holds.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from engine.importing.format import UnreadableError
from engine.packs.problems import Found
from engine.schema.recordable import UnrecordableError, recorded
from engine.types import Json

_AS_JSON = "correct it, or convert it to JSON: `yq -o=json . FILE` does"
_SCALARS: Mapping[str, tuple[str, str]] = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
}
"""The pattern of each plain scalar that is no text, and the characters that one begins with."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no type information upstream
    """A safe loader without aliases, whose keys are texts as they are written (`200`)."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, which is no alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*NAME) are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's
        """A mapping by the texts of its keys, each once."""
        made: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in made:
                raise yaml.constructor.ConstructorError(None, None, "a key is no text, or occurs twice", key.start_mark)
            made[key.value] = self.construct_object(value, deep=deep)
        return made


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), [*_first])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"\Z"), [""])


def yaml_value(text: str) -> Json:
    """The JSON value of a YAML document.

    Raises UnreadableError with the line for what is no YAML, or has no JSON."""
    try:
        return recorded(yaml.load(text, Loader=_Loader))  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        marked = isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None
        place = f"line {error.problem_mark.line + 1}" if marked else ""
        reason = error.problem if marked else " ".join(str(error).split())
        raise UnreadableError([Found(place, f"not YAML: {reason}", _AS_JSON)]) from error
    except (UnrecordableError, ValueError, RecursionError) as error:
        raise UnreadableError([Found("", f"not JSON in YAML: {error}", _AS_JSON)]) from error
