"""Looks for bytes that a decoder fails on, and keeps them: ``python -m tests.property.fuzz NAME
[SECONDS]``. It changes what is kept already and the golden files at random places."""

import random
import sys
import time
from typing import Any
from uuid import UUID

import msgpack

from fusejournal.wire.frames import HEADER_BYTES
from tests.golden.files import from_rows, golden
from tests.property.corpus import Input, inputs, keep
from tests.support.decoders import outcome_of

_ODD = (0, 1, 0x7F, 0x80, 0xC0, 0xC4, 0xDD, 0xDF, 0xFF)
_PIECES_MAX = 6
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 9, 10, 20, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1, 0.5, "", "x"),
    *("ship", "fetch", "ok", "raw", "zstd", "a\nb", "\x1b[2J", "\u202e", "x" * 4096, b"", b"x"),
    *(bytes(16), bytes(32), (UUID(int=5)).bytes, [], [1], [None], [[1]], [1 << 63] * 64, [1] * 65),
    *({}, {1: 2}),
)
"""Values that a field may have, or never."""


def seeds(name: str) -> list[bytes]:
    """The bytes that are changed: everything good and bad that is known of the decoder *name*."""
    found = [one.data for one in inputs(name)]
    if name == "message":
        goldens = map(_rows, golden("wire-v1").values())
        return found + [one[4:5] + one[HEADER_BYTES:] for one in goldens]
    whole: dict[str, Any] = {
        "wire": lambda: b"".join(_rows(one) for one in golden("wire-v1").values()),
        "segment": lambda: from_rows(golden("journal-v1")["segment"]),
        "index": lambda: _rows(golden("index-v1")),
        "seekable": lambda: _rows(golden("seekable-v1")),
        "watermarks": lambda: _rows(golden("watermarks-v1")),
    }
    if name in whole:
        found.append(whole[name]())
    return found


def _rows(raw: Any) -> bytes:
    return from_rows(raw["content"], raw["bytes"])


def changed(dice: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """*data* with some bytes set, removed, doubled, or taken from another."""
    found = bytearray(data)
    for _ in range(dice.randint(1, _PIECES_MAX)):
        at = dice.randrange(len(found) + 1)
        length = dice.choice((1, 1, 2, 4, 8, 16))
        match dice.randrange(6):
            case 0:
                found[at : at + 1] = bytes((dice.choice(_ODD),))
            case 1:
                found[at : at + 1] = dice.randbytes(1)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                other = dice.choice(others)
                start = dice.randrange(len(other) + 1)
                found[at : at + length] = other[start : start + length]
            case _:
                found[at : at + length] = dice.choice((bytes(length), b"\xff" * length))
    return bytes(found)


def with_odd_field(dice: random.Random, data: bytes) -> bytes:
    """Message *data* with another value in one field, if its body is an array."""
    try:
        fields = msgpack.unpackb(data[1:])
        fields[dice.randrange(len(fields))] = dice.choice(_ODD_VALUES)
    except (ValueError, TypeError, msgpack.UnpackException):
        return data
    packed: bytes = msgpack.packb(fields)
    return data[:1] + packed


def main() -> None:
    """Look for so many seconds; each failure is kept, and printed."""
    name = sys.argv[1]
    until = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
    dice = random.Random(time.time_ns())
    known, tries, failures = seeds(name), 0, set()
    while time.monotonic() < until:
        tries += 1
        data = dice.choice(known)
        if name == "message" and dice.random() < 0.7:
            data = with_odd_field(dice, data)
        else:
            data = changed(dice, data, known)
        try:
            outcome_of(name, data)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"[:60]
            if what not in failures:
                failures.add(what)
                print(what, data.hex()[:200])
                keep(name, Input(f"failed with {what}", data, "?"))
    print(f"{name}: {tries} inputs, {len(failures)} failures")


if __name__ == "__main__":
    main()
