"""Entries that are named by their positions: each is found in its own history, and no other."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fusejournal.admin.source import JournalSource, open_source
from fusejournal.cli.branch import restore_command as branch_restore
from fusejournal.cli.diff import diff
from fusejournal.cli.log import log
from fusejournal.cli.replay import replay
from fusejournal.cli.restore import restore_command
from fusejournal.cli.show import show
from fusejournal.errors import NoSuchSeqError, OtherHistoryError
from fusejournal.operations import Mark, NewEpoch
from fusejournal.types import SYSTEM_CALLER, Epoch, Position, Seq
from tests.support.entries import append_directories, make_directories


def _positions(directory: Path) -> list[Position]:
    """Makes a journal: epoch 1 has entries 2 to 5, epoch 2 the entries 7 to 306, of which
    the last is a mark. Returns the position at each entry, by seq."""
    journal = make_directories(directory, 0)
    positions = [journal.head]
    for epoch, count in ((1, 4), (2, 299)):
        journal.append(NewEpoch(Epoch(epoch), "test"), SYSTEM_CALLER, journal.head_seq + 1, _data)
        positions.append(journal.head)
        for _ in range(count):
            append_directories(journal, 1)
            positions.append(journal.head)
    journal.append(Mark("end"), SYSTEM_CALLER, journal.head_seq + 1, _data)
    positions.append(journal.head)
    journal.close()
    return positions


def _data(_: object) -> bytes:
    return b""


@pytest.fixture
def positions(tmp_path: Path) -> list[Position]:
    """Positions of the entries of the journal in ``tmp_path / "journal"``."""
    (tmp_path / "journal").mkdir()
    return _positions(tmp_path / "journal")


@pytest.fixture
def source(tmp_path: Path, positions: list[Position]) -> JournalSource:
    return open_source(str(tmp_path / "journal"))


def test_each_entry_is_found_by_its_position(
    source: JournalSource, positions: list[Position]
) -> None:
    assert len(source.reader.segments()) == 2
    for position in positions[1:12] + positions[250:]:
        assert source.check_seq(position) == position.seq
        assert source.end_of(to_seq=position) == position.seq + 1
        assert source.end_of(before_seq=position) == position.seq
        assert source.entry(position).entry.seq == position.seq
    assert source.check_moment(positions[0]) == 0
    found = source.criteria(from_seq=positions[3], to_seq=positions[8])
    assert (found.from_seq, found.to_seq) == (3, 9)


@pytest.mark.parametrize("seq", [0, 1, 5, 6, 7, 270, 306])
def test_a_position_of_another_history_is_refused(
    source: JournalSource, positions: list[Position], seq: int
) -> None:
    own = positions[seq]
    for other in (
        own._replace(chain=own.chain ^ 1),
        own._replace(epoch=Epoch(own.epoch + 1)),
        own._replace(epoch=Epoch(3 - own.epoch), chain=0xAB),
    ):
        with pytest.raises(OtherHistoryError) as caught:
            source.check_moment(other)
        assert str(caught.value) == (
            f"{other} is of another history: the position of entry {seq} is {own} here"
        )
        assert caught.value.exit_code == 16


def test_a_position_beyond_the_journal(source: JournalSource, positions: list[Position]) -> None:
    beyond = Position(Epoch(2), Seq(307), 5)
    for ask in (
        lambda: source.end_of(to_seq=beyond),
        lambda: source.criteria(to_seq=beyond),
        lambda: source.check_seq(positions[0]),
    ):
        with pytest.raises(NoSuchSeqError, match="has 1 to 306"):
            ask()


def _run(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


def test_commands_take_positions(tmp_path: Path, positions: list[Position]) -> None:
    journal = tmp_path / "journal"
    right = positions[8]
    wrong = right._replace(chain=7)
    commands: tuple[tuple[click.Command, tuple[object, ...]], ...] = (
        (show, ("AT",)),
        (diff, (positions[2], "AT")),
        (diff, ("AT", 20)),
        (log, ("--from-seq", "AT")),
        (log, ("--to-seq", "AT")),
        (restore_command, ("--to-seq", "AT", "--target", tmp_path / "to")),
        (restore_command, ("--before-seq", "AT", "--target", tmp_path / "before")),
        (replay, (tmp_path / "replayed", "--dry-run", "--to-seq", "AT")),
        (replay, (tmp_path / "replayed", "--dry-run", "--from-seq", "AT")),
    )
    for command, arguments in commands:
        told, by_seq, refused = (
            _run(command, journal, *(at if one == "AT" else one for one in arguments))
            for at in (right, right.seq, wrong)
        )
        assert isinstance(refused.exception, OtherHistoryError), (arguments, refused.output)
        assert f"{wrong} is of another" in str(refused.exception)
        assert not told.exit_code, (arguments, told.output, told.exception)
        if command is not restore_command:  # whose target is there the second time
            assert told.output == by_seq.output
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        *("d2", "d3", "d4", "d5", "d7", "d8")
    ]
    assert not (tmp_path / "before" / "d8").exists()


@pytest.mark.parametrize("command", [restore_command, branch_restore])
@pytest.mark.parametrize("text", ["x", "1/2", "0", "1/0/0000000000000000", "-1", "1.5"])
def test_what_is_neither_seq_nor_position(command: click.Command, text: str) -> None:
    for option in ("--to-seq", "--before-seq"):
        refused = _run(command, "volume", "name", option, text, "--target", "/nowhere")
        assert refused.exit_code == 2
        assert "EPOCH/SEQ/CHAIN" in refused.output or "first seq" in refused.output
        assert "SEQ|POSITION" in _run(command, "--help").output
