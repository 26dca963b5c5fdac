"""Records of JSON are read back with the types that they were written with, or not at all."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from fusejournal.disk.json_records import (
    checked,
    hash_of_hex,
    parse_object,
    position_of,
    read_object,
    reign_of_list,
)
from fusejournal.types import EPOCH_MAX, Epoch, Fid, Position, Reign, Seq


class _Part(NamedTuple):
    words: str


@dataclass(frozen=True)
class _Record:
    seq: Seq = Seq(0)
    fid: Fid = Fid(1)
    number: int = 0
    seconds: float = 0.0
    is_on: bool = False
    text: str | None = None
    kind: Literal["one", "two"] = "one"
    texts: tuple[str, ...] = ()
    pair: tuple[int, str] = (1, "x")
    part: _Part | None = None
    position: Position = Position(Epoch(1), Seq(2), 3)  # noqa: RUF009


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seq": (1 << 63) - 1, "fid": (1 << 63) - 1, "number": -(1 << 63)},
        {"number": (1 << 64) - 1, "seconds": 7, "is_on": True, "text": "x", "kind": "two"},
        {"seconds": -0.5, "texts": ("a", "b"), "part": _Part("x")},
        {"position": Position(Epoch(EPOCH_MAX), Seq(0), (1 << 64) - 1)},
    ],
)
def test_what_fits_is_returned(fields: dict[str, Any]) -> None:
    record = _Record(**fields)
    assert checked(record) is record


_ODD: dict[str, tuple[Any, ...]] = {
    "seq": (-1, 1 << 63, 1.0, "1", None, True, []),
    "fid": (0, -1, 1 << 63),
    "number": (True, 1 << 64, -(1 << 63) - 1, 0.5, "9" * 500),
    "seconds": (True, math.inf, math.nan, 1e12, "x", None),
    "is_on": (0, 1, None, "true"),
    "text": (1, b"x", []),
    "kind": ("three", 1, None, ["one"]),
    "texts": (["a"], (1,), ("a", None), "a"),
    "pair": ((1,), (1, 2), ("x", 1), (1, "x", 2)),
    "part": (_Part(1), ("x",), {}),  # type: ignore[arg-type]
    "position": (
        Position(Epoch(-1), Seq(2), 3),
        Position(Epoch(1), Seq(2), -3),
        (1, 2, 3),
    ),
}


@pytest.mark.parametrize("name", _ODD)
def test_what_does_not_fit_is_named(name: str) -> None:
    for value in _ODD[name]:
        with pytest.raises(ValueError, match="cannot be"):
            checked(_Record(**{name: value}))


def test_positions_and_reigns_are_read_of_lists() -> None:
    assert position_of([1, 2, 3]) == Position(Epoch(1), Seq(2), 3)
    assert reign_of_list([1, (1 << 64) - 1]) == Reign(Epoch(1), (1 << 64) - 1)
    for raw in ([1, 2], [1, 2, 3, 4], 5, None, "123", [1, 2, "3"], [1, True, 3], [1, 2, 1 << 64]):
        with pytest.raises((ValueError, TypeError)):
            position_of(raw)
    with pytest.raises(ValueError, match="node_id"):
        reign_of_list([1, -1])


def test_hashes_have_their_length() -> None:
    assert hash_of_hex("root", "00ff", 2) == b"\0\xff"
    for text in ("00", "00ff00", "zzzz", 5, None):
        with pytest.raises(ValueError, match=r"root cannot be|non-hexadecimal"):
            hash_of_hex("root", text, 2)


def test_only_objects_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text(json.dumps({"a": 1}))
    assert read_object(path) == {"a": 1}
    assert read_object(path, 8) == {"a": 1}
    with pytest.raises(ValueError, match="more than 7 bytes"):
        read_object(path, 7)
    for content in ("[]", "null", "5", '"x"', "", "{"):
        with pytest.raises(ValueError, match=r"no object|Expecting"):
            parse_object(content)


def test_a_pipe_or_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no file"):
        read_object(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        read_object(tmp_path)
