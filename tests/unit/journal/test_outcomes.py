"""Outcomes: which entries held, and how much of them."""

import errno
from pathlib import Path

import pytest

from fusejournal.errors import RecoveryError
from fusejournal.journal.journal import Journal
from fusejournal.journal.outcomes import HELD, Outcome, with_outcomes
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Operation, Unlink, Void, Write
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS

_WRITE = Write(Fid(7), 0, None)
_UNLINK = Unlink(Fid(7), ROOT_FID, b"name")


def _journal(path: Path, *operations: Operation) -> Journal:
    journal = Journal.create(path, UUID_OF_TESTS, JournalOptions())
    for time_ns, operation in enumerate(operations, 1):
        data = b"content" if isinstance(operation, Write) else b""
        journal.append(operation, SYSTEM_CALLER, time_ns, lambda _: b"name", data)
    return journal


def test_each_entry_has_what_became_of_it(tmp_path: Path) -> None:
    cut, refused = Void(Seq(2), errno.ENOSPC, 3), Void(Seq(4), errno.EPERM, 0)
    journal = _journal(tmp_path, _WRITE, _WRITE, cut, _UNLINK, refused, _WRITE)
    found = list(with_outcomes(journal.reader.read(Seq(1), Seq(7))))
    assert [entry.seq for entry, _ in found] == [1, 2, 4, 6]
    assert [outcome for _, outcome in found] == [
        HELD, Outcome(True, cut), Outcome(False, refused), HELD,
    ]  # fmt: skip
    assert [bytes(outcome.data_of(entry)) for entry, outcome in found] == [
        b"content", b"con", b"", b"content",
    ]  # fmt: skip


def test_a_void_of_an_entry_before_the_range_is_passed_over(tmp_path: Path) -> None:
    journal = _journal(tmp_path, _UNLINK, Void(Seq(1), errno.EPERM, 0), _WRITE)
    found = list(with_outcomes(journal.reader.read(Seq(2), Seq(4))))
    assert [(entry.seq, outcome) for entry, outcome in found] == [(3, HELD)]


def test_a_void_of_another_entry_is_an_error(tmp_path: Path) -> None:
    journal = _journal(tmp_path, _UNLINK, _UNLINK, Void(Seq(1), errno.EPERM, 0))
    with pytest.raises(RecoveryError, match="entry 3 voids 1"):
        list(with_outcomes(journal.reader.read(Seq(1), Seq(4))))
