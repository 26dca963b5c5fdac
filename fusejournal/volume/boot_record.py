"""The last use of a volume (STATE/boot): in which boot of the machine it was begun, by which
mounting of its file systems, and where its journal ended then.

An unclean end in the same boot leaves whatever was in the kernel's hands; in another one pages may
be gone, in any order. Written in place, and always as long, so that a full disk has room for it. A
record that is missing or spoilt vouches for nothing.

Used by the start and the end of a volume, and by the thread that sees a disk fail."""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from fusejournal.backing.root_mark import BackingRoot, filesystem_instance
from fusejournal.disk import calls
from fusejournal.disk.boot import boot_id
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import JournalFullError
from fusejournal.journal.reader import END
from fusejournal.types import Seq

log = logging.getLogger(__name__)

_BYTES = 512


class Boot(NamedTuple):
    """The last use by the record: whether it was in this boot and by this mounting of the file
    systems, and the head seq when the volume was opened then."""

    is_this: bool
    began_seq: Seq
    words: str = ""
    """The difference to now, where it is not this one."""


class BootRecord:
    """The record of the volume whose state is in *state_dir* and whose backing has the root
    *root*, which also says which volume it is."""

    def __init__(self, state_dir: Path, root: BackingRoot) -> None:
        self._state_dir = state_dir
        self._path = state_dir / "boot"
        self._root = root
        self.is_unclean = False
        """True if a disk has failed, also where that could not be written down."""

    def exists(self) -> bool:
        """True if the volume was ever begun."""
        return self._path.exists()

    def read(self) -> Boot:
        """The last use, as seen from this one. Raises OSError."""
        now = self._now()
        try:
            found = read_object(self._path)
            began_seq = checked(Boot(False, found.get("began_seq", Seq(0)))).began_seq
            if found.get("volume", now["volume"]) != now["volume"]:
                return Boot(False, END, f"{self._path} is another volume's")
            if found["boot_id"] != now["boot_id"]:
                return Boot(False, began_seq, "another boot of the machine")
            if any(found.get(key, value) != value for key, value in now.items()):
                return Boot(False, began_seq, "its disk went away and came back")
            return Boot(True, began_seq)
        except (FileNotFoundError, *UNREADABLE_JSON):
            # Then nothing vouches for the end of the journal either.
            return Boot(False, END, f"{self._path} is missing or spoilt")

    def _now(self) -> dict[str, str]:
        state_fd = os.open(self._state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return {
                "volume": str(self._root.uuid),
                "boot_id": boot_id(),
                "state": filesystem_instance(state_fd),
                "backing": filesystem_instance(self._root.fd),
            }
        finally:
            os.close(state_fd)

    def remember(self, head_seq: Seq) -> None:
        """Write down, durably, that the volume is used in this boot, and that its journal ends with
        *head_seq*. Raises JournalFullError, OSError."""
        try:
            self._write(self._now(), head_seq)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise JournalFullError(
                f"{self._path}: no space to write down that the volume is used: make space"
            ) from None

    def mark_unclean(self, head_seq: Seq) -> None:
        """Write down that a disk has failed: what it was given may be lost, as after a system
        crash, and so the next opening takes it. Where that is impossible, it is logged."""
        self.is_unclean = True
        try:
            self._write({"boot_id": "none: the disk failed"}, head_seq)
        except OSError as error:
            log.error("that the disk failed cannot be written down: %s", error)

    def _write(self, boot: dict[str, str], head_seq: Seq) -> None:
        content = json.dumps({**boot, "began_seq": head_seq}).encode()
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            calls.write_all("boot.write", fd, content.ljust(_BYTES), 0)
            calls.ftruncate("boot.truncate", fd, _BYTES)
            calls.fsync("boot.sync", fd)
        finally:
            os.close(fd)
        calls.fsync_directory("boot.sync.directory", self._state_dir)
