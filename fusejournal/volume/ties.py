"""Checks whether a volume's backing, state directory, journal and catalog go together, before a
byte is written, and marks the backing of a new volume. What ties them is in backing/root_mark.py.

Used once, by the start, in its order: :meth:`BackingTies.read_mark`, then, with the journal open,
:meth:`BackingTies.check` and :func:`open_catalog`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from uuid import UUID

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_file import CatalogSpoiltError
from fusejournal.backing.root_mark import BackingRoot, holds_copies_alone, read_root_mark
from fusejournal.disk import calls, syscalls
from fusejournal.errors import BackingError, JournalDamagedError, RecoveryError
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.types import ROOT_FID, Position, Seq
from fusejournal.volume.base import base_seq_of_journal


class BackingTies:
    """The ties of one volume."""

    def __init__(
        self,
        state_dir: Path,
        backing: Path,
        root: BackingRoot,
        page: WatermarkPage,
        *,
        is_mirror: bool,
        adopt: bool,
    ) -> None:
        """Reads nothing yet.

        Args:
            state_dir, backing: the volume's state directory, and where its backing is.
            root: the backing's root, with the volume's id.
            page: the node's watermarks.
            is_mirror: the journal is a copy.
            adopt: files that bear another volume's mark become this one's, while it is new."""
        self._state_dir = state_dir
        self._backing = backing
        self._root = root
        self._page = page
        self._is_mirror = is_mirror
        self._adopt = adopt
        self.position: Position | None = None
        """The position that the backing's root has of the journal, once that was read."""

    @property
    def position_seq(self) -> Seq:
        """The seq of that; 0 where there is none, or where a mirror stopped before its first
        entry."""
        return self.position.seq if self.position is not None else Seq(0)

    def take_back_to(self, position: Position) -> None:
        """Go by *position*, to which journal and backing are taken back, in place of what the root
        had."""
        self.position = position

    def check_empty(self) -> None:
        """Raise BackingError where there is something at the place of a new mirror."""
        names = sorted(map(os.fsdecode, syscalls.list_directory(self._root.fd)))
        if names:
            raise BackingError(
                self._backing,
                f"is not empty ({names[0]!r} is there), and a new mirror begins with nothing: "
                "give it an empty directory, not the root of a file system",
            )

    def read_mark(self, read_only: bool) -> None:
        """Read from the root's own mark which volume the backing belongs to, and set it for a new
        volume, before anything else. Raises BackingError, OSError."""
        uuid = self._root.uuid
        mark = read_root_mark(self._root.fd)
        has_journal = bool(list_segments(self._state_dir / "journal"))
        if mark is None or (self._adopt and not has_journal and mark.owner != uuid):
            if has_journal:
                raise BackingError(
                    self._backing,
                    f"is not this volume's backing (the journal in {self._state_dir} is another"
                    "'s); to make a volume of it, give that another --name",
                )
            if read_only:
                raise BackingError(self._backing, "has no journal yet: mount it once without -o ro")
            self.mark_root(uuid)
            return
        if mark.owner != uuid:
            raise BackingError(
                self._backing,
                f"belongs to volume {mark.owner or '?'}, not to {uuid} of "
                f"{self._state_dir}; if that volume is no more, begin anew with its files: "
                "mount with -o adopt and a new --state",
            )
        is_copy = not mark.is_original or holds_copies_alone(self._root.fd, uuid)
        if has_journal and is_copy:
            raise BackingError(
                self._backing,
                "is a copy of the volume's backing, whose files the journal knows as others: put "
                "the original back; or make a tree from the journal with 'fusejournal restore'; or "
                "begin anew with these files: mount them with -o adopt and a new --state",
            )
        self.position = mark.position

    def mark_root(self, uuid: UUID) -> None:
        """Make the backing that of volume *uuid*; on disk when this returns. Raises OSError."""
        self._root.mark_as(uuid)
        # The journal will be on disk long before the backing is: it must find its own again.
        calls.fsync("root.mark.sync", self._root.fd)

    def check(self, journal: Journal) -> None:
        """Raise RecoveryError unless state directory and backing are of the same time."""
        known, rooted_seq = self.position, self._page.rooted_seq
        if journal.damage is not None:
            return
        if rooted_seq > (known.seq if known is not None else 0):
            raise RecoveryError(
                f"{self._backing}: is older than its journal: it is as of entry "
                f"{known.seq if known is not None else 0} or later, and had been flushed as of "
                f"{rooted_seq}; put the newer one back; or "
                + self._way_out(
                    "make a tree from the journal with 'fusejournal restore', and mount that with "
                    "a new --state"
                )
            )
        if known is None or known.seq == 0:
            return
        if known.seq < base_seq_of_journal(journal):
            raise RecoveryError(
                f"{self._backing}: is as of entry {known.seq}, and the journal begins after entry "
                f"{base_seq_of_journal(journal)}: put the newer one back; or "
                + self._way_out(
                    "make a tree from the journal with 'fusejournal restore', and mount that with "
                    "a new --state"
                )
            )
        if known.seq > journal.head_seq:
            self._is_of_another_time(known, f"ends with {journal.head_seq}")
        for _, frame in journal.reader.frames(known.seq, Seq(known.seq + 1)):
            if frame.checksum != known.chain:
                self._is_of_another_time(known, "has another entry there")

    def _is_of_another_time(self, known: Position, what: str) -> NoReturn:
        raise RecoveryError(
            f"{self._backing}: goes with a journal that has entry {known.seq}, and the one in "
            f"{self._state_dir} {what}: that state directory is an older copy, or segments of it "
            "are missing; put the newer one back; or "
            + self._way_out(
                "begin anew with the files as they are: mount them with -o adopt and a new --state"
            )
        )

    def _way_out(self, of_primary: str) -> str:
        """Returns the other way out, by the volume's role."""
        if not self._is_mirror:
            return of_primary
        return "begin this mirror anew, with an empty directory and a new --state"

    def has_lost_page(self, journal: Journal) -> bool:
        """True if the page of watermarks, which this volume had, is gone. What a mirror had applied
        is unknown then, and whether a primary still reigns."""
        if not journal.head_seq or not self._page.is_unconfirmed:
            return False
        # (A primary of an older version had none.)
        return self._is_mirror or self.position is not None


def open_catalog(
    directory: Path,
    root_fd: int,
    journal: Journal,
    repaired: Callable[[str], None],
    on_commit_due: Callable[[], None],
) -> Catalog:
    """Opens the catalog in *directory* of the backing that *root_fd* is open on. One that is
    damaged, or another backing's, is recreated, which is reported through *repaired*;
    *on_commit_due* is the catalog's. Raises JournalDamagedError if it has entries that *journal*
    has lost, and OSError."""
    try:
        catalog = Catalog(directory, on_commit_due)
    except CatalogSpoiltError as error:
        repaired(f"the catalog was spoilt and is made anew ({error})")
        shutil.rmtree(directory)
        catalog = Catalog(directory, on_commit_due)
    root = catalog.node(ROOT_FID)
    if catalog.applied_seq < base_seq_of_journal(journal):
        # It is begun with the base anew: the entries that it lacks are not all here.
        catalog.close()
        shutil.rmtree(directory)
        catalog = Catalog(directory, on_commit_due)
    elif root is not None and root.handle != syscalls.handle_of(root_fd):
        repaired("the catalog was another backing's and is made anew")
        catalog.close()
        shutil.rmtree(directory)
        catalog = Catalog(directory, on_commit_due)
    if catalog.applied_seq > journal.head_seq and journal.damage is None:
        # The end of the journal that the catalog has seen in this boot cannot have been torn.
        known = catalog.applied_seq
        catalog.close()
        raise JournalDamagedError(
            journal.directory,
            0,
            journal.head_seq + 1,
            f"entries up to {known} were there; segments are missing at the end",
        )
    if catalog.node(ROOT_FID) is None:
        stat = os.fstat(root_fd)
        catalog.add_root(syscalls.handle_of(root_fd), stat.st_ino)
    return catalog
