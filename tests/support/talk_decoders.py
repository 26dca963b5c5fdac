"""Everything that takes bytes of the kernel, of the control socket, of an agent's answer, of a
file's mark, or of a page that is only a help: by name, with what it may raise."""

import json
import os
import struct
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import xxhash

from fusejournal.backing.fid_tag import pack_tag, read_tag
from fusejournal.backing.root_mark import read_root_mark
from fusejournal.console.agents import _answer_in, _failed
from fusejournal.console.checked_overview import checked_overview
from fusejournal.control.client import reply_in
from fusejournal.control.server import _answer, _parsed
from fusejournal.disk import syscalls
from fusejournal.disk.json_records import parse_object
from fusejournal.errors import FusejournalError, WireError
from fusejournal.layer.kernel_protocol import (
    EXTENSION_BYTES,
    IN_HEADER,
    SETXATTR_EXT,
    MalformedRequestError,
    Opcode,
    decode_interrupt,
    request_kinds,
)
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replay.progress_page import ProgressPage
from fusejournal.roles.plan import PromotionPlan
from fusejournal.types import ROOT_FID
from fusejournal.versions.verified_blocks import VerifiedBlocks
from fusejournal.wire.passes import name_in
from tests.support.decoding import Decoding, check_types

STORE_ID = "00000000-0000-4000-8000-00000000feed"
"""The store that the golden file of what was verified is of."""
VOLUME = UUID(int=5)
"""The volume of the marks."""


def _hello(data: bytes, _: Path) -> object:
    """The first bytes of a stranger: the name in them stays what it is when more bytes come, and
    each beginning of a record that is not whole has none yet."""
    name = name_in(data)
    if name is None:
        return None
    assert name.isascii()
    assert name_in(data + b"\x16more") == name
    whole = 5 + int.from_bytes(data[3:5], "big")
    if data[0] == 22:
        assert all(name_in(data[:end]) is None for end in range(0, whole, 1 + whole // 8))
    return name


def _request(data: bytes, _: Path) -> object:
    """A request of the kernel, as a copy and in the reader's buffer, by both sets of kinds."""
    length, opcode, *_rest, extensions, _ = IN_HEADER.unpack_from(data)
    if length != len(data):
        raise MalformedRequestError("another length")
    if extensions:
        data = data[: length - extensions * EXTENSION_BYTES]
    if opcode == Opcode.INTERRUPT:
        return decode_interrupt(data)
    found = []
    for flags in (SETXATTR_EXT, 0):
        kind = request_kinds(flags).get(opcode)
        if kind is not None:
            decoded = kind.decode(data)
            assert kind.decode(memoryview(data)) == decoded
            found.append(decoded)
    return found


async def _says(request: dict[str, Any]) -> dict[str, Any]:
    return {"said": request.get("name")}


def _control(data: bytes, _: Path) -> None:
    """A request at the control socket: whatever it is, there is a reply, which the client reads."""
    request = _parsed(data)
    if request is not None:
        request.get("follow")
    answering = _answer(request, {"say": _says})
    try:
        answering.send(None)
    except StopIteration as end:
        reply: Mapping[str, Any] = end.value
    else:
        raise AssertionError("nothing is waited for")
    line = json.dumps(reply).encode() + b"\n"
    with suppress(FusejournalError):
        assert "said" in reply_in("the layer", line)


def _reply(data: bytes, _: Path) -> None:
    """A layer's reply, as the answers that commands make of it."""
    raw = reply_in("the layer", data)
    for kind in (VolumeStatus, PromotionPlan):
        with suppress(FusejournalError):
            kind.from_json(raw).to_json()


def _overview(data: bytes, _: Path) -> None:
    found = checked_overview(parse_object(data))
    names = [volume["name"] for volume in found.volumes]
    assert len(set(names)) == len(names)
    for volume in found.volumes:
        for problem in volume["problems"]:
            assert set(problem) == {"key", "words", "severity", "advice"}
            assert all(type(text) is str for text in problem.values())
    json.dumps(found.volumes, allow_nan=False)


def _call_answer(data: bytes, _: Path) -> None:
    """The whole of an agent's answer, good or bad; a browser can read what is passed on."""
    failed = _failed(data)
    assert type(failed.exit_code) is int
    assert str(failed).isprintable()
    json.dumps(_answer_in("agent", data), allow_nan=False)


def _verified(data: bytes, directory: Path) -> None:
    """The file as it is, and with a checksum that is right. What is kept can be read again."""
    path = directory / "verified"
    check = xxhash.xxh3_64_intdigest(data[16:]).to_bytes(8, "little")
    for content in (data, data[:8] + check + data[16:]):
        path.write_bytes(content)
        blocks = VerifiedBlocks(path, STORE_ID, 20_030)
        blocks.knows(bytes(32), b"pack")
        blocks.add(bytes(32), b"pack")
        blocks.save()
        assert VerifiedBlocks(path, STORE_ID, 20_030).knows(bytes(32), b"pack")


def _progress(data: bytes, directory: Path) -> object:
    (directory / "progress").write_bytes(data)
    fd = os.open(directory / "progress", os.O_RDWR | os.O_CLOEXEC)
    with closing(ProgressPage(fd)) as page:
        return page.read(), page.recall()


def _mark(data: bytes, directory: Path) -> object:
    """The mark of a root, and of a file; "OWN" in it stands for the volume and fid of the root with
    its handle."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = syscalls.handle_of(fd)
        data = data.replace(b"OWN", pack_tag(VOLUME, ROOT_FID, handle))
        with mock.patch("os.getxattr", return_value=data):
            mark, tag = read_root_mark(fd), read_tag(fd, handle)
    finally:
        os.close(fd)
    assert mark is not None
    assert mark.is_original or mark.position is None
    check_types(mark)
    return mark, tag


TALK_DECODERS = {
    "hello": Decoding(_hello, ()),
    "request": Decoding(_request, (MalformedRequestError, struct.error)),
    "control": Decoding(_control, ()),
    "reply": Decoding(_reply, (FusejournalError,)),
    "overview": Decoding(_overview, (WireError, ValueError, RecursionError)),
    "answer": Decoding(_call_answer, (WireError,)),
    "verified": Decoding(_verified, ()),
    "progress": Decoding(_progress, (ValueError,)),
    "mark": Decoding(_mark, ()),
}
