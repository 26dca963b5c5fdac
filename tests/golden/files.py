"""The golden files: where they lie, and what all makers of them share."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

HERE = Path(__file__).parent
UUID_OF_GOLDENS = UUID("01234567-89ab-cdef-0123-456789abcdef")
NOW_NS = 1_700_000_000_000_000_000
_ROW_BYTES = 32


def to_rows(content: bytes) -> list[str]:
    """*content* in hexadecimal, a line for 32 bytes; zeros at its end are left out."""
    content = content.rstrip(b"\0")
    return [content[at : at + _ROW_BYTES].hex() for at in range(0, len(content), _ROW_BYTES)]


def from_rows(rows: list[str], length: int = 0) -> bytes:
    """The content that :func:`to_rows` was given; *length* says how long it was."""
    return bytes.fromhex("".join(rows)).ljust(length, b"\0")


def golden(name: str) -> Any:
    """The content of the golden file *name*."""
    return json.loads((HERE / f"{name}.json").read_text())
