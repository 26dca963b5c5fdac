"""Typed answers of a running layer: frozen dataclasses that go over the control socket as JSON
objects, with the names of their fields as keys."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Self

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked, parse_object
from fusejournal.errors import FusejournalError


class ReportedState(StrEnum):
    """The base of states that answers give, in JSON by their values. A value that only a later
    version knows is a member by itself, which no list has."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member


@dataclass(frozen=True)
class Reply:
    """The base of typed answers. Fields hold strings, states, numbers, booleans, None, other
    replies, and tuples of these."""

    OMITTED: ClassVar[frozenset[str]] = frozenset()
    """Fields that have no key in the JSON object where they are None."""
    NESTED: ClassVar[Mapping[str, type["Reply"] | type[ReportedState]]] = {}
    """Fields that hold a reply, a state, or a tuple of these, and of which class."""

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object, keys in the order of the fields."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: _to_json(value)
            for name, value in values.items()
            if value is not None or name not in self.OMITTED
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Returns the answer of which *raw* is the JSON object. Keys that this program does not
        know are left out, because the layer may be of a later version; fields with a default may
        be missing. Raises FusejournalError where another one is, or one is not of its type, or
        *raw* is no object."""
        if not isinstance(raw, Mapping):
            raise FusejournalError(f"the layer's answer has {raw!r:.80} for an object")
        values = {}
        for one in fields(cls):
            if one.name in raw:
                values[one.name] = _from_json(raw[one.name], cls.NESTED.get(one.name))
            elif one.default is MISSING:
                raise FusejournalError(
                    f"the layer is of another version: its answer has no {one.name!r}; "
                    "'fusejournal restart VOLUME' makes it one of this version"
                )
        try:
            return checked(cls(**values))
        except ValueError as error:
            raise FusejournalError(f"the layer's answer cannot be: {error}") from None

    @classmethod
    def from_line(cls, who: str, line: bytes | str) -> Self:
        """Returns the answer of which *line*, that *who*, a process in words, has sent, is the JSON
        object. Raises FusejournalError where it is none."""
        try:
            return cls.from_json(parse_object(line))
        except (FusejournalError, *UNREADABLE_JSON):
            raise FusejournalError(f"{who} answers what is no reply: {line!r:.80}") from None


@dataclass(frozen=True, kw_only=True)
class Done(Reply):
    """The answer to a command that has nothing to report."""

    ok: bool = True


def _to_json(value: Any) -> Any:
    if isinstance(value, Reply):
        return value.to_json()
    if isinstance(value, tuple):
        return [_to_json(part) for part in value]
    return value.value if isinstance(value, ReportedState) else value


def _from_json(value: Any, nested: type[Reply] | type[ReportedState] | None) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(part, nested) for part in value)
    if nested is None or value is None:
        return value
    if issubclass(nested, Reply):
        return nested.from_json(value)
    if not isinstance(value, str):
        raise FusejournalError(f"the layer's answer has {value!r:.80} for a state")
    return nested(value)
