"""The checks of configured values: what a TOML file gives becomes a NamedTuple whose fields say
what they take, by annotations. By hand, because every command reads a configuration, and a
library for this would be the larger part of a short one's start.

Understood are NamedTuples, ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``tuple[X, ...]``,
``Mapping[str, str]``, ``X | None``, and ``Annotated`` with any of :class:`Bounds` and
:class:`Parsed`. Nothing is converted but an integer where a float is wanted, and a list where a
tuple is. Pure."""

import sys
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

_T = TypeVar("_T")
_A_KIND = {bool: "boolean", int: "integer", float: "number", str: "string"}


class ValueRefusedError(Exception):
    """A value that cannot be, or a key that is not known."""

    def __init__(self, keys: tuple[str, ...], reason: str, *, is_unknown: bool = False) -> None:
        self.keys = keys
        """The way to it."""
        self.reason = reason
        self.is_unknown = is_unknown
        """True of a key that is not known."""
        super().__init__(f"{'.'.join(keys)}: {reason}")


class Bounds(NamedTuple):
    """The ends of a number's range; *above* is not in it, both others are."""

    least: float | None = None
    most: float | None = None
    above: float | None = None


class Parsed(NamedTuple):
    """A value is first given to *parse*, which returns what it stands for, or raises ValueError
    with the reason."""

    parse: Callable[[Any], Any]


def checked(cls: type[_T], raw: Any) -> _T:
    """Returns the NamedTuple *cls* made of the table *raw*, as ``tomllib`` gives it; keys that are
    missing have their defaults. Raises ValueRefusedError for the first thing that cannot be."""
    made: _T = _check(cls, raw, ())
    return made


def known_keys(cls: type, above: tuple[str, ...] = ()) -> list[str]:
    """Returns all keys that a file for *cls* can have, with their sections before them."""
    found = []
    for name, kind in get_type_hints(cls).items():
        keys = *above, name
        found.append(".".join(keys))
        if _is_table(kind):
            found += known_keys(kind, keys)
    return found


def _is_table(kind: Any) -> bool:
    return hasattr(kind, "_field_defaults")


def _check(kind: Any, value: Any, keys: tuple[str, ...]) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        return _check_annotated(kind, value, keys)
    if origin in (Union, UnionType):
        return _check_optional(kind, value, keys)
    if origin is Literal:
        return _check_word(get_args(kind), value, keys)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueRefusedError(keys, "Input should be a valid tuple")
        each = get_args(kind)[0]
        return tuple(_check(each, one, (*keys, str(at))) for at, one in enumerate(value))
    if origin is Mapping or _is_table(kind):
        if not isinstance(value, dict):
            raise ValueRefusedError(keys, "Input should be a table")
        if origin is Mapping:
            return {key: _check(str, one, (*keys, key)) for key, one in value.items()}
        return _check_table(kind, value, keys)
    return _check_plain(kind, value, keys)


def _check_table(cls: Any, raw: dict[str, Any], keys: tuple[str, ...]) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    made = {
        name: _check(kind, raw[name], (*keys, name)) for name, kind in hints.items() if name in raw
    }
    for key in raw:
        if key not in hints:
            raise ValueRefusedError((*keys, key), "unknown key", is_unknown=True)
    return cls(**made)


def _check_annotated(kind: Any, value: Any, keys: tuple[str, ...]) -> Any:
    beneath, *rules = get_args(kind)
    for rule in rules:
        if isinstance(rule, Parsed):
            try:
                value = rule.parse(value)
            except ValueError as error:
                raise ValueRefusedError(keys, str(error)) from None
    value = _check(beneath, value, keys)
    for rule in rules:
        if isinstance(rule, Bounds):
            _check_bounds(rule, value, keys)
    return value


def _check_bounds(bounds: Bounds, value: float, keys: tuple[str, ...]) -> None:
    # Written so that no bound lets "nan" pass.
    if bounds.least is not None and not value >= bounds.least:
        raise ValueRefusedError(
            keys, f"Input should be greater than or equal to {_shown(bounds.least)}"
        )
    if bounds.above is not None and not value > bounds.above:
        raise ValueRefusedError(keys, f"Input should be greater than {_shown(bounds.above)}")
    if bounds.most is not None and not value <= bounds.most:
        raise ValueRefusedError(
            keys, f"Input should be less than or equal to {_shown(bounds.most)}"
        )


def _shown(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _check_optional(kind: Any, value: Any, keys: tuple[str, ...]) -> Any:
    kinds = get_args(kind)
    if value is None and NoneType in kinds:
        return None
    (beneath,) = (one for one in kinds if one is not NoneType)
    return _check(beneath, value, keys)


def _check_word(words: tuple[str, ...], value: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(value, str) or value not in words:
        *others, last = (repr(word) for word in words)
        shown = f"{', '.join(others)} or {last}" if others else last
        raise ValueRefusedError(keys, f"Input should be {shown}")
    # One string for all: comparisons of it are by identity, mostly.
    return sys.intern(value)


def _check_plain(kind: Any, value: Any, keys: tuple[str, ...]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    elif type(value) is kind:
        return value
    raise ValueRefusedError(keys, f"Input should be a valid {_A_KIND[kind]}")
