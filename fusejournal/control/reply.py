"""Typed answers of a running layer: frozen dataclasses that go over the control socket as JSON
objects, with the names of their fields as keys."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self

from fusejournal.errors import FusejournalError


@dataclass(frozen=True)
class Reply:
    """The base of typed answers. Fields hold strings, numbers, booleans, None, other replies, and
    tuples of these."""

    OMITTED: ClassVar[frozenset[str]] = frozenset()
    """Fields that have no key in the JSON object where they are None."""
    NESTED: ClassVar[Mapping[str, type["Reply"]]] = {}
    """Fields that hold a reply, or a tuple of replies, and of which class."""

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
        be missing. Raises FusejournalError where another one is."""
        values = {}
        for one in fields(cls):
            if one.name in raw:
                values[one.name] = _from_json(raw[one.name], cls.NESTED.get(one.name))
            elif one.default is MISSING:
                raise FusejournalError(
                    f"the layer is of another version: its answer has no {one.name!r}; "
                    "'fusejournal restart VOLUME' makes it one of this version"
                )
        return cls(**values)


def _to_json(value: Any) -> Any:
    if isinstance(value, Reply):
        return value.to_json()
    if isinstance(value, tuple):
        return [_to_json(part) for part in value]
    return value


def _from_json(value: Any, nested: type[Reply] | None) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(part, nested) for part in value)
    return nested.from_json(value) if nested is not None and value is not None else value
