"""OpenAPI 3: every operation as a tool.

Its name is the operationId, or method and path; path, query and body become one object of arguments; the first 2xx
response that is JSON becomes `outputs`. Headers, cookies, servers and security belong to the transport, which a mock
world does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.importing.format import UnreadableError
from engine.packs.problems import Found
from engine.synthesis.seeds.references import References, UnusableError, is_mergeable
from engine.synthesis.seeds.seed import one_line
from engine.synthesis.seeds.toolbox import Toolbox
from engine.task import Tool

_METHODS = ("get", "put", "post", "delete", "patch")
_OTHER_METHODS = ("head", "options", "trace", "query")
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json\b|\*/\*|application/\*", re.IGNORECASE)
_FORM = re.compile(r"application/x-www-form-urlencoded\b|multipart/form-data\b", re.IGNORECASE)
_SUCCESS = re.compile(r"2(?:[0-9]{2}|XX)", re.IGNORECASE)
_PLAIN_OBJECT = frozenset(
    {"type", "properties", "required", "additionalProperties", "title", "description", "examples", "deprecated"}
)
"""What a body may say and still be merged with the parameters."""
_RESULT = "result"


def tools_of_openapi(document: Mapping[str, Any]) -> tuple[str, str, Toolbox]:
    """The form of a document in words, its title, and its operations as tools.

    Raises UnreadableError for a document of another version, or without paths."""
    version = document.get("openapi", document.get("swagger"))
    if not str(version).startswith("3."):
        remedy = "convert it: `npx swagger2openapi FILE` makes OpenAPI 3 of Swagger 2"
        name = "openapi" if "openapi" in document else "swagger"
        raise UnreadableError([Found(name, f"is {version!r}, not 3.x", remedy)])
    paths, info = document.get("paths"), document.get("info")
    if not isinstance(paths, Mapping) or not paths:
        raise UnreadableError([Found("paths", "has no path", "an operation of a path becomes a tool")])
    reader = _Operations(document)
    for path, item in paths.items():
        reader.read(path, item)
    for name in ("webhooks", "security"):
        if document.get(name):
            reader.box.left_out(name, "has no part in a mock world")
    title = info.get("title") if isinstance(info, Mapping) else ""
    return f"OpenAPI {version}", one_line(str(title or "").lower()), reader.box


class _Operations:
    """Reads the operations of one document into a toolbox."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.box = Toolbox()
        self._refs = References(document, self.box)

    def read(self, path: str, given: Any) -> None:
        """All operations of a path."""
        place = f"paths.{path}"
        try:
            item = self._refs.followed(given)
        except UnusableError as error:
            self.box.left_out(place, f"{error}: its operations cannot be used")
            return
        if not isinstance(item, Mapping):
            self.box.left_out(place, "is no object: its operations cannot be used")
            return
        for method in _METHODS:
            if method in item:
                self._operation(f"{place}.{method}", method, path, item)
        for method in _OTHER_METHODS:
            if method in item:
                self.box.left_out(f"{place}.{method}", "is no operation for a tool")

    def _operation(self, place: str, method: str, path: str, item: Mapping[str, Any]) -> None:
        operation = item[method]
        if not isinstance(operation, Mapping):
            self.box.left_out(place, "is no object")
            return
        try:
            parameters = self._arguments(place, operation, item)
            outputs = self._outputs(f"{place}.responses", operation.get("responses"))
        except UnusableError as error:
            self.box.left_out(place, f"{error}: the operation cannot be used")
            return
        name = operation.get("operationId") or re.sub(r"\W+", "_", f"{method} {path}").strip("_")
        told = (str(operation.get(part) or "").strip() for part in ("summary", "description"))
        description = "\n".join(dict.fromkeys(filter(None, told)))
        self.box.add(place, Tool(name=str(name), description=description, parameters=parameters, outputs=outputs))

    # --- arguments --------------------------------------------------------------------------------------------------

    def _arguments(self, place: str, operation: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
        """One object schema of path, query and body."""
        properties: dict[str, Any] = {}
        required: list[str] = []
        for name, parameter in self._parameters(place, operation, item):
            properties[name] = self._of_parameter(parameter, f"{place}.parameters.{name}")
            if parameter.get("required") is True or parameter["in"] == "path":
                required.append(name)
        made = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        body = self._refs.followed(operation.get("requestBody"))
        return self._with_body(made, body, f"{place}.requestBody") if isinstance(body, Mapping) else made

    def _parameters(
        self, place: str, operation: Mapping[str, Any], item: Mapping[str, Any]
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Parameters of path and query by name; the operation's go before the path's."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for source in (item, operation):
            listed = source.get("parameters")
            for given in listed if isinstance(listed, list) else ():
                parameter = self._refs.followed(given)
                if isinstance(parameter, Mapping) and isinstance(parameter.get("name"), str):
                    found[parameter["name"], str(parameter.get("in"))] = parameter
        for (name, where), parameter in found.items():
            if where not in ("path", "query"):
                self.box.left_out(f"parameters in {where}", "belong to the transport")
            elif where == "query" and (name, "path") in found:
                self.box.left_out(f"{place}.parameters.{name}", "stands in the path too")
            else:
                yield name, parameter

    def _of_parameter(self, parameter: Mapping[str, Any], place: str) -> Any:
        schema = parameter.get("schema")
        if schema is None:
            schema = self._content(parameter.get("content"), place)
        made = self._refs.written_out(schema if schema is not None else {"type": "string"}, place, hidden="readOnly")
        told = parameter.get("description")
        return {**made, "description": told} if isinstance(told, str) and isinstance(made, Mapping) else made

    def _with_body(self, made: dict[str, Any], body: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The arguments with the members of the body among them; a body that is no plain object, or has a name that is
        taken, is one argument `body`."""
        given = self._content(body.get("content"), place, forms=True)
        if given is None:
            raise UnusableError("its body is neither JSON nor a form")
        schema = self._refs.written_out(given, place, hidden="readOnly")
        needed = body.get("required") is True
        plain = is_mergeable(schema) and schema.get("type", "object") == "object" and schema.keys() <= _PLAIN_OBJECT
        members = schema.get("properties", {}) if plain else {}
        if not members or members.keys() & made["properties"].keys() or (not needed and schema.get("required")):
            name = "body" if "body" not in made["properties"] else "request_body"
            self.box.rewrote(place, f"is the argument {name!r} as a whole")
            return {
                **made,
                "properties": {**made["properties"], name: schema},
                "required": [*made["required"], *([name] if needed else [])],
            }
        return {
            "type": "object",
            "properties": {**made["properties"], **members},
            "required": [*made["required"], *schema.get("required", ())],
            "additionalProperties": schema.get("additionalProperties", False),
        }

    # --- outputs ----------------------------------------------------------------------------------------------------

    def _outputs(self, place: str, responses: Any) -> Mapping[str, Any] | None:
        """The schema of the first successful answer that is JSON; anything but an object is its member `result`."""
        codes = responses if isinstance(responses, Mapping) else ()
        for code in sorted(filter(_SUCCESS.fullmatch, codes)):
            response = self._refs.followed(responses[code])
            content = response.get("content") if isinstance(response, Mapping) else None
            given = self._content(content, f"{place}.{code}")
            if given is None:
                continue
            schema = self._refs.written_out(given, f"{place}.{code}", hidden="writeOnly")
            untyped = "object" if isinstance(schema, Mapping) and "properties" in schema else None
            if isinstance(schema, Mapping) and schema.get("type", untyped) == "object":
                return {"type": "object", **schema}
            self.box.rewrote(f"{place}.{code}", f"is no object: it is the member {_RESULT!r} of the answer")
            return {"type": "object", "properties": {_RESULT: schema}, "required": [_RESULT]}
        return None

    def _content(self, content: Any, place: str, *, forms: bool = False) -> Any:
        """The schema of the first JSON media type, or of a form; None without one."""
        if not isinstance(content, Mapping) or not content:
            return None
        for kind in (_JSON, _FORM) if forms else (_JSON,):
            for name, media in content.items():
                found = self._refs.followed(media)
                if kind.match(str(name)) and isinstance(found, Mapping):
                    return found.get("schema", {})
        self.box.left_out(place, f"is {', '.join(map(repr, content))}, not JSON")
        return None
