"""A dump: every entry in order, up to damage; and what is no damage."""

import os
from pathlib import Path

from fusejournal.history.dump import DumpedSegment, dump_segments
from fusejournal.journal.format import Entry
from fusejournal.journal.reader import JournalReader
from tests.support.volumes import open_volume


def _shown(entry: Entry) -> str:
    return f"{entry.seq} {entry.operation.kind.name}"


def _dump(journal: Path) -> list[DumpedSegment]:
    return list(dump_segments(JournalReader(journal).segments(), _shown))


def test_a_dump_ends_at_damage_and_not_at_an_append_under_way(tmp_path: Path) -> None:
    with open_volume(tmp_path, orderly=False) as volume:
        volume.work(60)
        head_seq = volume.volume.journal.head.seq
        directory = volume.journal_dir
    found = _dump(directory)
    assert len(found) == 2
    lines = [line for one in found for line in one.lines.decode().splitlines()]
    assert [line.split()[0] for line in lines] == [str(seq) for seq in range(1, head_seq + 1)]
    assert [one.damage for one in found] == [None] * len(found)
    assert sum(line.endswith(" VOID") for line in lines) == 60

    newest = JournalReader(directory).segments()[-1]
    end = len(newest.read_bytes().rstrip(b"\0"))
    os.truncate(newest, end - 3)
    torn = _dump(directory)[-1]
    assert torn.damage is None
    assert torn.lines.count(b"\n") == found[-1].lines.count(b"\n") - 1

    oldest = JournalReader(directory).segments()[0]
    os.truncate(oldest, oldest.stat().st_size // 2)
    first, second = _dump(directory)[:2]
    assert first.damage is not None
    assert first.damage.segment == oldest
    assert 0 < first.lines.count(b"\n") < found[0].lines.count(b"\n")
    assert second == torn
