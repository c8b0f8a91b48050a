"""JSON that many share and nobody can change: dicts and lists in every other way, also to orjson and jsonschema."""

from __future__ import annotations

from typing import Any, NoReturn

from engine.types import Json


def frozen(value: Json) -> Json:
    """Returns a JSON value whose objects and arrays raise TypeError when somebody changes them: a copy of all that can.

    `copy.deepcopy` of it gives plain ones."""
    if is_frozen(value):
        return value
    if isinstance(value, dict):
        return _FrozenDict((name, frozen(inner)) for name, inner in value.items())
    return _FrozenList(map(frozen, value)) if isinstance(value, list) else value


def thawed(value: Json) -> Json:
    """Returns a plain copy of a JSON value, frozen or not, that shares nothing which can be changed."""
    if isinstance(value, dict):
        # Most members are scalars, which need no call: this runs for every tool call.
        return {name: thawed(inner) if isinstance(inner, _NESTED) else inner for name, inner in value.items()}
    return [thawed(inner) for inner in value] if isinstance(value, list) else value


def is_frozen(value: Json) -> bool:
    """Whether a value is an object or array that `frozen` gave, so that it can be shared."""
    return isinstance(value, _FROZEN)


def _refused(*_: object, **__: object) -> NoReturn:
    raise TypeError("this value is shared by all episodes and cannot be changed; change a copy.deepcopy of it")


class _FrozenDict(dict[str, Any]):
    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refused

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class _FrozenList(list[Any]):
    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refused
    append = clear = extend = insert = pop = remove = reverse = sort = _refused

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return list, (list(self),)


_NESTED = (dict, list)
_FROZEN = (_FrozenDict, _FrozenList)
