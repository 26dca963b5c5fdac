"""The fields of a call, checked as they are taken: they come from another machine."""

from collections.abc import Mapping
from typing import Any

from fusejournal.errors import UsageError


class Fields:
    """The fields of one call. Each method raises UsageError for a value that cannot be."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def text(self, name: str, default: str | None = None) -> str:
        """Returns a text; *default* None: there has to be one."""
        value = self._raw.get(name, default)
        if not isinstance(value, str):
            raise UsageError(f"{name} has to be a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Returns a text, or None for none and for an empty one."""
        return self.text(name, "") or None

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts; empty without one. One text is a list of one."""
        value = self._raw.get(name, [])
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{name} has to be a list of texts")
        return [one for one in value if one]

    def number(self, name: str, default: int | None = None, *, least: int = 0) -> int:
        """Returns a whole number of at least *least*; *default* None: there has to be one."""
        value = self.number_or_none(name, least=least)
        if value is None:
            value = default
        if value is None:
            raise UsageError(f"{name} has to be a whole number")
        return value

    def number_or_none(self, name: str, *, least: int = 0) -> int | None:
        """Returns a whole number of at least *least*, or None for none."""
        value = self._raw.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not least <= value < 1 << 63:
            raise UsageError(f"{name} has to be a whole number, {least} or more")
        return value

    def with_values(self, **values: Any) -> "Fields":
        """Returns the fields with *values* in place of those of these names."""
        return Fields({**self._raw, **values})

    def flag(self, name: str) -> bool:
        """Returns True where the field is there and true."""
        return self._raw.get(name) in (True, "1", "true")
