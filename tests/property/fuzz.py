"""Looks for bytes that a decoder fails on, and keeps them: ``python -m tests.property.fuzz NAME
[SECONDS]``. It changes what is kept already and the golden files at random places, and where these
are JSON or msgpack, values of them."""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgpack

from fusejournal.agent.job_kinds import KINDS
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.journal import base
from fusejournal.types import Epoch
from fusejournal.versions import manifest
from fusejournal.versions.trees import Trees
from fusejournal.wire.frames import HEADER_BYTES
from tests.golden.files import HERE, from_rows, golden
from tests.property.corpus import Input, inputs, keep
from tests.support.decoders import outcome_of
from tests.support.recorded import read_recorded

_ODD = (0, 1, 0x7F, 0x80, 0xC0, 0xC4, 0xDD, 0xDF, 0xFF)
_PIECES_MAX = 6
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 9, 10, 20, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1, 0.5, "", "x"),
    *("ship", "fetch", "ok", "raw", "zstd", "a\nb", "\x1b[2J", "\u202e", "x" * 4096, b"", b"x"),
    *(bytes(16), bytes(32), (UUID(int=5)).bytes, [], [1], [None], [[1]], [1 << 63] * 64, [1] * 65),
    *({}, {1: 2}, -1e999, float("nan"), 1 << 200, "1/1", "9" * 5000, [[[]]], {"x": []}),
)
"""Values that a field may have, or never."""


_CHANNELS = b"""[webhook.w]
url = "http://127.0.0.1:1/x"
headers = { a = "b" }
severity = "bad"
[mail.m]
to = ["a@b"]
from = "c@d"
port = 25
[command.c]
argv = ["/bin/true"]
per_hour = 20
"""
_RECORDS = {
    "base": "base-v1", "branch": "branch-v1", "clients": "clients-v1", "level": "level-v1",
    "members": "members-v1", "parted": "parted-v1", "rejoin": "rejoin-v1", "scrub": "scrub-v1",
    "versions": "versions-v1", "witness": "witness-v1", "store_head": "store-heads-v1",
    "peers": "peers-v1", "volume": "volume-v4", "place": "place-v1", "connection": "connection-v1",
    "consoles": "agent-consoles-v1", "agents": "console-agents-v1", "users": "console-users-v1",
    "tokens": "console-tokens-v1", "alerts": "console-alerts-v1", "told": "console-told-v1",
    "seen": "console-seen-v1",
}  # fmt: skip
"""The golden files that are a decoder's JSON, or a list of these, or have it by the file's name."""


def seeds(name: str) -> list[bytes]:
    """The bytes that are changed: everything good and bad that is known of the decoder *name*."""
    found = [one.data for one in inputs(name)]
    if name in _RECORDS:
        raw = golden(_RECORDS[name])
        raw = raw.get("branch.json", raw.get("connection", raw)) if isinstance(raw, dict) else raw
        return found + [
            json.dumps(one).encode() for one in (raw if isinstance(raw, list) else [raw])
        ]
    objects = golden("store-objects-v1")
    whole: dict[str, Callable[[], list[bytes]]] = {
        "message": lambda: [
            one[4:5] + one[HEADER_BYTES:] for one in map(_rows, golden("wire-v1").values())
        ],
        "wire": lambda: [b"".join(_rows(one) for one in golden("wire-v1").values())],
        "segment": lambda: [from_rows(golden("journal-v1")["segment"])],
        "index": lambda: [_rows(golden("index-v1")), _rows(golden("index-v2"))],
        "seekable": lambda: [_rows(golden("seekable-v1"))],
        "watermarks": lambda: [_rows(golden("watermarks-v1"))],
        "open_files": lambda: [from_rows(golden("open-files-v1")["content"])],
        "boot": lambda: [golden("boot-v1")["text"].encode()],
        "lock": lambda: [golden("lock-v1")["text"].encode()],
        "key": lambda: [golden("key-v1")["text"].encode()],
        "sealed": lambda: [bytes.fromhex(one) for one in golden("sealed-v1")["objects"].values()],
        "version": lambda: [_json(objects[one]) for one in objects if one.startswith("versions/")],
        "worker": lambda: [_json(objects[one]) for one in objects if one.startswith("active/")],
        "plan": lambda: [_json(objects["plans/0000000003"])],
        "tree_told": lambda: [_told(objects)],
        "node": _nodes,
        "list_node": _nodes,
        "tree": _nodes,
        "inode": lambda: [
            bytes.fromhex(one) for _, one in golden("records-v1")["records"].values()
        ],
        "job_request": lambda: list(map(_json, golden("agent-jobs-v1")["request.json"].values())),
        "job_progress": lambda: [_json(golden("agent-jobs-v1")["progress.json"])],
        "job_end": lambda: [_json(golden("agent-jobs-v1")["end.json"])],
        "channels": lambda: [_CHANNELS],
        "audit": lambda: ["\n".join(golden("console-audit-v1")).encode()],
        "call": _calls,
        "request": lambda: [
            one.request for one in read_recorded(HERE / "requests-linux-6.18.json")
        ],
    }
    return found + (whole[name]() if name in whole else [])


def _json(raw: Any) -> bytes:
    return json.dumps(raw).encode()


def _told(objects: dict[str, Any]) -> bytes:
    (version,) = (json.dumps(raw) for name, raw in objects.items() if name.startswith("versions/"))
    told = {"version": version, "store": "id", "first_seq": 1, "head_seq": 9, "journal_bytes": 99}
    return _json(told)


def _nodes() -> list[bytes]:
    return [bytes.fromhex(one) for rows in golden("tree-nodes-v1").values() for _, one in rows]


def _inodes() -> list[bytes]:
    return [bytes.fromhex(one) for _, one in golden("records-v1")["records"].values()]


def _calls() -> list[bytes]:
    """Each call with all of its fields, of the right types."""
    values = {"string": "docs", "integer": 12, "boolean": True, "array": ["7-12"]}
    found = []
    for name, told in golden("calls-v1").items():
        given = {field: values[kind] for field, kind in told["given"].items()}
        fields = {**dict.fromkeys(told["from the path"], "1"), **given, "volume": "data"}
        for kind in KINDS if name == "job-create" else ("",):
            found.append(name.encode() + b"\n" + _json({**fields, "kind": kind}))
            found.append(name.encode() + b"\n" + _json({"volume": "data", "kind": kind}))
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
    return data[:1] + with_odd_value(dice, data[1:], msgpack.unpackb, msgpack.packb)


def with_odd_value(
    dice: random.Random,
    data: bytes,
    unpack: Callable[[bytes], Any],
    pack: Callable[[Any], bytes],
) -> bytes:
    """*data*, which *unpack* reads and *pack* writes, with another value somewhere in it."""
    try:
        return pack(_replaced(dice, unpack(data)))
    except (*UNREADABLE_JSON, msgpack.UnpackException):
        return data


def _replaced(dice: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.05:
            return {one: value[one] for one in value if one != key}
        return {**value, key: _replaced(dice, value[key])}
    if isinstance(value, list | tuple) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        return [*value[:at], _replaced(dice, value[at]), *value[at + 1 :]]
    return dice.choice(_ODD_VALUES)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, default=lambda one: one.decode("latin-1")).encode()


def _with_check(value: Any) -> bytes:
    """A record with a check that is right."""
    raw = {key: one for key, one in value.items() if key not in ("format", "check")}
    return _as_json({"format": 1, **raw, "check": base._check_of(raw)})


def _version_with_check(value: Any) -> bytes:
    """A version with a root and a check that are right."""
    raw = {key: one for key, one in value.items() if key not in ("check", "root")}
    trees = Trees(
        bytes.fromhex(raw["inodes"]), bytes.fromhex(raw["names"]), raw["next_fid"], Epoch(0), 0
    )
    root = manifest.root_hash(UUID(raw["uuid"]), raw["rule"], trees)
    raw = {"format": raw.pop("format"), "root": root, **raw}
    return _as_json({**raw, "check": manifest._check_of(raw)})


_MSGPACK = ("node", "list_node", "tree", "inode")
_PACKS = {"base": _with_check, "version": _version_with_check}


def changed_for(name: str, dice: random.Random, known: list[bytes]) -> bytes:
    """Something else for the decoder *name* than is among *known*."""
    data = dice.choice(known)
    if dice.random() < 0.3:
        return changed(dice, data, known)
    for _ in range(dice.choice((1, 1, 2))):
        if name == "message":
            data = with_odd_field(dice, data)
        elif name in _MSGPACK:
            data = with_odd_value(dice, data, msgpack.unpackb, msgpack.packb)
        elif name == "call":
            what, end, raw = data.partition(b"\n")
            data = what + end + with_odd_value(dice, raw, json.loads, _as_json)
        else:
            data = with_odd_value(dice, data, json.loads, _PACKS.get(name, _as_json))
    return data if data not in known else changed(dice, data, known)


def main() -> None:
    """Look for so many seconds; each failure is kept, and printed."""
    name = sys.argv[1]
    until = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
    dice = random.Random(time.time_ns())
    known, tries, failures = seeds(name), 0, set()
    while time.monotonic() < until:
        tries += 1
        data = changed_for(name, dice, known)
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
