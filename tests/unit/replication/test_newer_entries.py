"""Entries that a mirror, or a primary that takes entries back, cannot read: none of them is taken,
none acknowledged, and what was taken before stays usable."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.cli.journal import journal as journal_group
from fusejournal.errors import JournalVersionError
from fusejournal.journal.format import FRAME_HEADER_BYTES
from fusejournal.journal.frame_range import FrameRangeReader
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.verify import verify
from fusejournal.types import Epoch, Seq
from fusejournal.wire.batches import RAW, batch_of, frame_range_of
from fusejournal.wire.frames import WireError
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError
from tests.support.entries import (
    FORGED,
    NEWER_FIELD,
    NEWER_KIND,
    UUID_OF_TESTS,
    append_payload,
    write_samples,
)
from tests.support.pairs import (
    level,
    mirror_status,
    peer_status,
    shipping,
    until,
)
from tests.support.volumes import applied, open_volume


def _received(journal: Journal) -> None:
    """Does what a receiver does with a batch of the whole *journal*."""
    reader = FrameRangeReader(journal.directory, journal.uuid)
    reader.seek(Seq(0))
    frame_range = reader.next(journal.end, journal.head_seq, 1 << 20)
    assert frame_range is not None
    assert frame_range.last_seq == journal.head_seq
    head = journal.head_seq
    frame_range_of(batch_of(frame_range, RAW, frame_range.content, Epoch(1), head, head))


@pytest.mark.parametrize("fields", [NEWER_KIND, NEWER_FIELD])
def test_a_batch_of_a_newer_version_is_refused(tmp_path: Path, fields: tuple[object, ...]) -> None:
    journal = write_samples(tmp_path)
    _received(journal)
    append_payload(journal, *fields)
    with pytest.raises(RefusedError, match="newer version") as refused:
        _received(journal)
    assert refused.value.code == RefusalCode.VERSION


def test_a_forged_batch_ends_the_session(tmp_path: Path) -> None:
    journal = write_samples(tmp_path)
    append_payload(journal, *FORGED)
    with pytest.raises(WireError, match="cannot be") as caught:
        _received(journal)
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize("fields", [NEWER_KIND, NEWER_FIELD])
@pytest.mark.parametrize("unclean_machine", [True, False])
def test_a_newer_entry_is_no_damage(
    tmp_path: Path, fields: tuple[object, ...], unclean_machine: bool
) -> None:
    """Nor a torn tail: whatever became of the machine, nothing of it is cut off."""
    journal = write_samples(tmp_path)
    head_seq = journal.head_seq
    append_payload(journal, *fields)
    append_payload(journal, *fields)
    journal.close()
    (path,) = tmp_path.glob("*.fj")
    before = path.read_bytes()

    def check(error: JournalVersionError) -> None:
        assert "upgrade" in str(error)
        assert "damaged at" not in str(error)
        assert (error.seq, error.exit_code) == (head_seq + 1, 29)

    options = JournalOptions()
    with pytest.raises(JournalVersionError) as caught:
        Journal.open(tmp_path, UUID_OF_TESTS, options, unclean_machine=unclean_machine)
    check(caught.value)
    opened = Journal.open(
        tmp_path, UUID_OF_TESTS, options, unclean_machine=unclean_machine, read_only=True
    )
    assert isinstance(opened.damage, JournalVersionError)
    assert opened.head_seq == head_seq
    reader = JournalReader(tmp_path, UUID_OF_TESTS)
    with pytest.raises(JournalVersionError) as caught:
        list(reader.read(Seq(1), END))
    check(caught.value)
    (damage,) = verify([path], None, lambda done, total: None, deep=True).damages
    assert isinstance(damage, JournalVersionError)
    assert path.read_bytes() == before


def test_an_index_is_not_made_over_a_newer_kind(tmp_path: Path) -> None:
    journal = write_samples(tmp_path)
    append_payload(journal, *NEWER_KIND)
    (path,) = tmp_path.glob("*.fj")
    with pytest.raises(JournalVersionError):
        journal.reader.index(path)
    journal.close()


def test_a_segment_of_a_newer_format(tmp_path: Path) -> None:
    """Its own checksum is right, so it is no damage."""
    import xxhash

    write_samples(tmp_path).close()
    (path,) = tmp_path.glob("*.fj")
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    reader = JournalReader(tmp_path, UUID_OF_TESTS)
    with pytest.raises(Exception, match="damaged at byte 0"):
        list(reader.read(Seq(1), END))
    content[120:128] = xxhash.xxh3_64_intdigest(bytes(content[:120])).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(JournalVersionError, match="format version 2"):
        list(reader.read(Seq(1), END))


@pytest.mark.mount
async def test_a_mirror_acknowledges_nothing_that_it_cannot_read(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        with open_volume(tmp_path / "mirror", mirror=True) as mirror:
            async with shipping(primary, mirror):
                primary.work(2)
                await until("level", level(primary, mirror))
                known = primary.volume.journal.head_seq
                seq = append_payload(primary.volume.journal, *NEWER_KIND)
                primary.volume.catalog.applied_seq = seq
                primary.usage.entry_applied(seq, primary.volume.journal.appended_bytes)
                await until("refused", lambda: mirror_status(mirror).state == "refused")
                assert "newer version" in str(mirror_status(mirror))
                await until("told", lambda: peer_status(primary).acked_seq >= known)
                assert peer_status(primary).acked_seq == known
                assert mirror.volume.failure is None
        # The mirror mounts again, and goes on when it is of the newer version.
        with open_volume(
            tmp_path / "mirror", mirror=True, uuid=primary.volume.journal.uuid
        ) as again:
            assert applied(again) == known
            assert again.volume.failure is None


@pytest.mark.parametrize("fields", [NEWER_KIND, NEWER_FIELD])
def test_verify_tells_a_newer_version_from_damage(
    tmp_path: Path, fields: tuple[object, ...]
) -> None:
    journal = write_samples(tmp_path)
    append_payload(journal, *fields)
    journal.close()
    verify_it = ["verify", "--deep", str(tmp_path)]
    found = CliRunner().invoke(journal_group, verify_it)
    assert found.exit_code == 29
    assert "DAMAGED" not in found.output
    assert found.output.splitlines()[-1].startswith("of a newer version: ")
    (told,) = json.loads(CliRunner().invoke(journal_group, [*verify_it, "--json"]).output)[
        "damages"
    ]
    assert told["is_newer"] is True
    (path,) = tmp_path.glob("*.fj")
    content = bytearray(path.read_bytes())
    content[SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES] ^= 1
    path.write_bytes(content)
    found = CliRunner().invoke(journal_group, verify_it)
    assert found.exit_code == 11
    assert found.output.splitlines()[-1].startswith("DAMAGED: ")
