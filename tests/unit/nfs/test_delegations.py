"""A list of what is to be recalled reaches the process that does it whole, however slowly that
reads."""

import os
import struct
from pathlib import Path

import pytest

from fusejournal.nfs.delegations import Generations, Recaller
from fusejournal.types import ROOT_FID, Fid
from tests.support.volumes import open_volume

_RECORD = struct.Struct("<QI")


class _Reader:
    """A process that reads when the test does."""

    def __init__(self) -> None:
        self.fd, writing = os.pipe()
        os.set_blocking(writing, False)
        self.stdin = open(writing, "wb", buffering=0)  # noqa: SIM115

    def poll(self) -> None:
        return None


def test_a_full_pipe_takes_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _Reader()
    monkeypatch.setattr(Recaller, "_start", lambda _: reader)
    recaller = Recaller(tmp_path, lambda fid: fid & 0xFFFF)
    content = b""
    for first in range(0, 60_000, 20_000):
        recaller.recall({Fid(fid) for fid in range(first, first + 20_000)})
        content += os.read(reader.fd, 7_000)  # no whole number of records
    while recaller._pending:
        content += os.read(reader.fd, 1 << 20)
        recaller.recall(set())
    recaller.close()
    while more := os.read(reader.fd, 1 << 20):
        content += more
    os.close(reader.fd)
    records = list(_RECORD.iter_unpack(content))
    assert {fid for fid, _ in records} == set(range(60_000))
    assert all(generation == fid & 0xFFFF for fid, generation in records)


def test_generations_are_the_journals(tmp_path: Path) -> None:
    """They are asked for before there is a journal to make them with."""
    generations = Generations(tmp_path / "state" / "journal")
    with open_volume(tmp_path) as opened:
        key = opened.volume.journal.handle_key
        fids = (ROOT_FID, opened.create("file"), Fid(1 << 40))
        assert [generations.of(fid) for fid in fids] == [key.generation(fid) for fid in fids]
        assert generations.of(fids[1])
