"""A way to decode bytes, and whether what comes out has the types that it says to have."""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, NewType, Union, get_args, get_origin, get_type_hints


class Decoding(NamedTuple):
    """A way to decode bytes, with an empty directory to use. ``errors``: all that bytes which
    cannot be may raise."""

    decode: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def check_types(value: Any) -> None:
    """Check that each field of *value*, a dataclass or NamedTuple, is of its type, those within it
    too. Raises AssertionError."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        for one in value:
            check_types(one)
        return
    if value is None:
        return
    cls: Any = type(value)
    names = [one.name for one in fields(cls)] if is_dataclass(cls) else cls._fields
    for name in names:
        found, kind = getattr(value, name), _hints(cls)[name]
        assert _fits(found, kind), f"{cls.__name__}.{name} is {found!r:.60}, and no {kind}"


def _fits(value: object, kind: Any) -> bool:
    while isinstance(kind, NewType):
        kind = kind.__supertype__
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (tuple, frozenset, list):
        if not isinstance(value, origin):
            return False
        if origin is tuple and parts[-1] is not ...:
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(one, parts[0]) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if kind is Any:
        return True
    if kind is int:
        return type(value) is int
    if kind is float:
        return type(value) in (int, float) and abs(value) < float("inf")  # type: ignore[arg-type]
    if not isinstance(value, type(None) if kind is None else kind):
        return False
    if is_dataclass(value) or hasattr(value, "_fields"):
        check_types(value)
    return True
