"""Losses: makes of a volume that is not running what a system crash would leave; and kills code
that runs in the test's own process."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import UUID

from fusejournal.backing.root_mark import BackingRoot, read_root_mark
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError
from fusejournal.journal.index import index_path
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import load_state
from fusejournal.roles.role import Role
from fusejournal.types import Seq
from fusejournal.volume.checkpoint import CheckpointFile
from tests.support.trees import difference, image, rebuild


def crash_system(state: Path, last_seq: int) -> None:
    """The volume's machine goes down; nothing after entry *last_seq* had reached the journal's
    disk."""
    *_, (path, frame) = JournalReader(state / "journal").frames(Seq(1), Seq(last_seq + 1))
    for later in list_segments(state / "journal"):
        if later >= path:
            index_path(later).unlink(missing_ok=True)
        if later > path:
            later.unlink()
    os.truncate(path, frame.offset + len(frame.content))
    _forget_after(state, last_seq)
    begin_another_boot(state)


def _forget_after(state: Path, last_seq: int) -> None:
    """Takes back all else that was written down of later entries: it had not reached a disk
    either."""
    page = WatermarkPage(state / "watermarks")
    if CheckpointFile(state / "checkpoint", page).load().seq > last_seq:
        (state / "checkpoint").unlink()
    page.write_durable(min(page.durable_seq, Seq(last_seq)))
    root_fd = os.open(state.parent / "backing", os.O_RDONLY | os.O_DIRECTORY)
    mark = read_root_mark(root_fd)
    if mark is not None and mark.position is not None and mark.position.seq > last_seq:
        assert mark.owner is not None
        BackingRoot(root_fd, mark.owner).mark()
        page.write_rooted(Seq(0))
    os.close(root_fd)
    page.close()


def begin_another_boot(state: Path) -> None:
    """The volume was last used before the machine was booted."""
    record = state / "boot"
    if not record.exists():
        # Without it every start counts as one in another boot. Only a mirror that has not heard
        # from a primary yet may have none: whatever else has begun has made it durable.
        assert load_state(state).role is Role.UNINITIALIZED
        return
    boot = json.loads(record.read_text())
    record.write_text(json.dumps({**boot, "boot_id": "the one before"}))


class Died(BaseException):
    """A kill, for code that runs in the test's own process."""


def dying_at(label: str, count: int) -> AbstractContextManager[list[int]]:
    """Raise Died at the *count*'th storage call whose label begins with *label*; 0: never. Gives
    how many are left, in a list."""
    return failing_at(label, count, Died())


@contextmanager
def failing_at(label: str, count: int, fault: BaseException) -> Iterator[list[int]]:
    """Does the same with *fault* in the place of Died."""
    left = [count]

    def listen(reached: str) -> None:
        if reached.startswith(label):
            left[0] -= 1
            if left[0] == 0:
                raise fault

    failpoints.listen(listen)
    try:
        yield left
    finally:
        failpoints.listen(None)


def rebuild_stopped(volume: Path, uuid: UUID, label: str, step: int) -> None:
    """Replay the journal in *volume* to one target after another beside it. Each is stopped at a
    storage call whose label begins with *label*, the next one *step* calls further: by a kill, then
    by a full disk. Gone on with, each comes to the tree of the backing."""
    count, was_stopped = 0, True
    while was_stopped:
        count += step
        target = volume / f"target{count}"
        target.mkdir()
        was_stopped, is_done = False, False
        for fault in (Died(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None):
            try:
                with failing_at(label, count if fault else 0, fault or Died()):
                    rebuild(volume / "state", target, uuid)
            except (Died, FusejournalError):
                was_stopped = True
            else:
                is_done = True
                break
        assert is_done
        assert not difference(image(target), image(volume / "backing")), count
    assert count > 20
