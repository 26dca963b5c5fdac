"""Looks for bytes that a decoder fails on, and keeps them: ``python -m tests.property.fuzz NAME
[SECONDS]``. It changes what is kept already and the golden files at random places."""

import random
import sys
import time
from typing import Any

from tests.golden.samples import from_rows, golden
from tests.property.corpus import Input, inputs, keep
from tests.support.decoders import outcome_of

_ODD = (0, 1, 0x7F, 0x80, 0xC0, 0xC4, 0xDD, 0xDF, 0xFF)
_PIECES_MAX = 6


def seeds(name: str) -> list[bytes]:
    """What is changed: everything good and bad that is known of the decoder *name*."""
    found = [one.data for one in inputs(name)]
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


def main() -> None:
    """Look for so many seconds; each failure is kept, and printed."""
    name = sys.argv[1]
    until = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
    dice = random.Random(time.time_ns())
    known, tries, failures = seeds(name), 0, set()
    while time.monotonic() < until:
        tries += 1
        data = changed(dice, dice.choice(known), known)
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
