"""Small records of JSON as they are read back: an object of a bounded size, whose values have the
types that the program's own writing gives them.

Damage, a hand that edited a file, and another program's file are errors where they are read, in the
reader's own class and one line, and never values that only their user fails on. The functions here
raise ValueError, which is among the errors of :data:`fusejournal.disk.files.UNREADABLE_JSON`, and
touch nothing but what they are given."""

import json
import os
import types
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from fusejournal.types import EPOCH_MAX, Epoch, Fid, Position, Reign, Seq

_BYTES_MAX = 4 << 20
"""Far more than any such file has."""
_SEQ_END = 1 << 63
_WORD_END = 1 << 64
_NUMBER_MAX = 1e11
_RANGES: dict[Any, range] = {
    Seq: range(_SEQ_END),
    Fid: range(1, _SEQ_END),
    Epoch: range(EPOCH_MAX + 1),
}
"""The values that a number of these types can have; any other fits into 64 bits."""
_ANY_WORD = range(-_SEQ_END, _WORD_END)

_Word = NewType("_Word", int)
_COMPILED: dict[Any, dict[str, Any]] = {
    Position: {"epoch": Epoch, "seq": Seq, "chain": _Word},
    Reign: {"epoch": Epoch, "node_id": _Word},
}
"""The types of the fields of compiled classes, which do not know them as well."""
_RANGES[_Word] = range(_WORD_END)

Record = TypeVar("Record")


def read_object(path: Path, bytes_max: int = _BYTES_MAX) -> dict[str, Any]:
    """Returns the JSON object in the file *path*, which is not waited for where it is a pipe.
    Raises OSError, ValueError where it is none, or longer than *bytes_max*; RecursionError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ValueError(f"it has more than {bytes_max:,} bytes")
    return parse_object(content)


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Returns the JSON object that *content* is. Raises ValueError, RecursionError."""
    raw = json.loads(content)
    if not isinstance(raw, dict):
        raise ValueError("it is no object")
    return raw


def checked(record: Record) -> Record:
    """Returns *record*, a dataclass or NamedTuple, each field of which is of its type, of those
    within it too. Raises ValueError, which names the one that is not."""
    cls: Any = type(record)
    for name, kind in _kinds_of(cls).items():
        value = getattr(record, name)
        if not _fits(value, kind):
            raise ValueError(f"{name} cannot be {value!r:.80}")
    return record


def position_of(raw: Any) -> Position:
    """Returns the position that was written as a list. Raises ValueError, TypeError."""
    return checked(Position(*raw))


def reign_of_list(raw: Any) -> Reign:
    """Returns the reign that was written as a list. Raises ValueError, TypeError."""
    return checked(Reign(*raw))


def hash_of_hex(name: str, text: object, length: int) -> bytes:
    """Returns the *length* bytes that the field *name* has in hexadecimal. Raises ValueError."""
    found = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(found) != length:
        raise ValueError(f"{name} cannot be {text!r:.80}")
    return found


@cache
def _kinds_of(cls: Any) -> dict[str, Any]:
    if cls in _COMPILED:
        return _COMPILED[cls]
    hints = get_type_hints(cls)
    names = [one.name for one in fields(cls)] if is_dataclass(cls) else cls._fields
    return {name: hints[name] for name in names}


def _fits(value: object, kind: Any) -> bool:
    """Returns True if *value* can be one of the type *kind*."""
    while isinstance(kind, NewType):
        if type(value) is not int or value not in _RANGES.get(kind, _ANY_WORD):
            return False
        kind = kind.__supertype__
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (tuple, frozenset):
        is_any_length = len(parts) == 2 and parts[1] is ...
        if not isinstance(value, origin):
            return False
        if origin is tuple and not is_any_length:
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(one, parts[0]) for one in value)
    if kind is int:
        return type(value) is int and value in _ANY_WORD
    if kind is float:
        # (Neither infinite nor no number, and a time that can be shown.)
        return (type(value) is int or isinstance(value, float)) and abs(value) < _NUMBER_MAX
    if not isinstance(value, kind):
        return False
    if is_dataclass(value) or hasattr(value, "_fields"):
        checked(value)
    return True
