"""Answers about a volume's tree and its files' lives."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from fusejournal.admin.source import open_source
from fusejournal.agent import browse
from fusejournal.agent.fields import Fields
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Operation, Rename, Setxattr, Write
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid
from fusejournal.wire.frames import ANSWER_BYTES_MAX
from tests.support.entries import UUID_OF_TESTS
from tests.support.nodes import make_volume
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


def test_the_lives_of_a_file_that_was_saved_very_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save is a file of its own: the last ones are told, and how many there were."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    fids: list[Fid] = []
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        for _ in range(6):
            fid, old = volume.volume.new_fid(), fids[-1] if fids else Fid(0)
            volume.volume.commit(Create(fid, ROOT_FID, b".new", 0o100644, 0, 0, 0, None), SOMEBODY)
            volume.volume.commit(Rename(fid, ROOT_FID, b".new", ROOT_FID, b"a", 0, old), SOMEBODY)
            fids.append(fid)
    source = open_source("data")
    with mock.patch.object(browse, "_LIVES_MAX", 8):
        found = browse.life(source, Fields({"path": "a"}))
    assert found["count"] == 6
    assert [one["fid"] for one in found["lives"]] == fids[-len(found["lives"]) :]
    assert 1 < len(found["lives"]) < 6
    with mock.patch.object(browse, "_LIVES_MAX", 1):
        assert len(browse.life(source, Fields({"path": "a"}))["lives"]) == 1
    assert len(browse.life(source, Fields({"path": "a"}))["lives"]) == 6


def _journal_of_one_file(directory: Path, *changes: tuple[Operation, bytes]) -> None:
    """A journal in which file "f", fid 2, is made and changed, in segments of 2 MiB."""
    options = JournalOptions(segment_bytes=2 << 20)
    journal = Journal.create(directory, UUID_OF_TESTS, options)
    made = Create(Fid(2), ROOT_FID, b"f", 0o100644, 0, 0, 0, None)
    for number, (operation, data) in enumerate([(made, b""), *changes], 1):
        journal.append(operation, SYSTEM_CALLER, number, {Fid(2): b"f"}.get, data)
    journal.close()


@contextmanager
def _using_at_most(most_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most_bytes


def test_the_life_of_a_file_that_was_written_much_takes_little_memory(tmp_path: Path) -> None:
    """600 writes of 64 KiB, 38 MiB: their number counts, and not their bytes."""
    data = bytes(range(256)) * 256
    _journal_of_one_file(
        tmp_path, *((Write(Fid(2), number << 16, None), data) for number in range(600))
    )
    source = open_source(str(tmp_path))
    with _using_at_most(16 << 20):
        (found,) = browse.life(source, Fields({"path": "f"}))["lives"]
    assert (found["count"], len(found["entries"])) == (601, 500)
    newest = found["entries"][0]
    assert (newest["seq"], newest["bytes"], newest["size_after"]) == (601, 64 << 10, 600 << 16)
    assert [one["seq"] for one in found["entries"]] == list(range(601, 101, -1))


def test_the_life_of_a_file_with_very_large_attributes(tmp_path: Path) -> None:
    """The newest entries are told, as many as an answer can have, and how many there are."""
    value = b"\xff" * (64 << 10)
    change = Setxattr(Fid(2), b"user.a", value)
    _journal_of_one_file(tmp_path, *([(change, b"")] * 300))
    source = open_source(str(tmp_path))
    with _using_at_most(24 << 20):
        answer = browse.life(source, Fields({"path": "f"}))
    (found,) = answer["lives"]
    assert found["count"] == 301
    assert [one["seq"] for one in found["entries"]] == list(
        range(301, 301 - len(found["entries"]), -1)
    )
    assert 10 < len(found["entries"]) < 100
    assert found["entries"][0]["value"] == value.decode("utf-8", "surrogateescape")
    assert len(json.dumps(answer)) < ANSWER_BYTES_MAX
