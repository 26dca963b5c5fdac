"""The same lives (test_lives.py) on two small disks, one for the state, one for the backing: they
get full of blocks or of inodes, go away while the volume runs or after it was killed, without what
was not written to them yet, and come back; or are unmounted under it.

The disks are real file systems: what they refuse, and what they lose, is their own doing. A volume
on them does what it does, or refuses it with backing and journal as they were; it loses nothing
that was durable, and nothing at all that the disk with the journal has kept.

``FUSEJOURNAL_MODEL_LIVES`` says how many runs to make (12 by default)."""

from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from fusejournal.errors import FusejournalError, JournalFullError
from fusejournal.types import Seq
from tests.model.test_lives import Lives, live
from tests.support.disks import SmallDisk
from tests.support.trees import difference
from tests.support.users import own_mounts
from tests.support.workload import workspace

pytestmark = pytest.mark.mount

_ROLLS = st.binary(min_size=12, max_size=12)
_SIDES = st.sampled_from(("state", "backing"))
_MIB = {"state": 40, "backing": 24}


class DiskLives(Lives):
    """The lives of a volume on two small disks."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.disks: dict[str, SmallDisk] = {}
        try:
            super().__init__()
        except BaseException:
            self._leave_places()
            raise

    def _make_places(self) -> dict[str, Path]:
        images = self._stack.enter_context(workspace())
        places = {}
        self.volume.mkdir()
        for name, size_mib in _MIB.items():
            disk = SmallDisk(
                images / name, self.base / f"{name} disk", size_mib, "-m", "5", "-N", "400"
            )
            self._stack.callback(disk.remove)
            self.disks[name] = disk
            places[name] = disk.mountpoint / name
            places[name].mkdir()
            disk.flush()
            (self.volume / name).symlink_to(places[name])
        return places

    # -- full disks --------------------------------------------------------------------------------

    def _is_full(self) -> bool:
        return any(disk.is_full for disk in self.disks.values())

    def _have_room(self) -> None:
        for disk in self.disks.values():
            disk.make_space()

    def _flush(self) -> None:
        for disk in self.disks.values():
            disk.flush()

    def _close(self, how: str) -> None:
        """On a full disk it may be no orderly stop."""
        self.has_stopped = False
        with suppress(JournalFullError) if self._is_full() else nullcontext():
            super()._close(how)
            self.has_stopped = True

    def _open(self, *, expect_quiet: bool) -> None:
        """On a full disk it may be refused; with space it works."""
        if not self._is_full():
            super()._open(expect_quiet=expect_quiet)
            return
        before = self._stopped()
        refusal = ""
        try:
            super()._open(expect_quiet=expect_quiet)
        except FusejournalError as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal
            assert "space" in refusal, refusal
            if expect_quiet:
                assert not (found := difference(self._stopped(), before)), found
            else:  # what was mended by then was reported by a start that was refused
                self.is_blind = True
            self._close_all()
            self._have_room()
            super()._open(expect_quiet=False)

    @precondition(lambda self: self.opened is not None)
    @rule(
        side=_SIDES,
        what=st.sampled_from(("blocks", "blocks", "inodes")),
        leave=st.sampled_from((0, 1, 8, 300)),
    )
    def fill_a_disk(self, side: str, what: str, leave: int) -> None:
        disk = self.disks[side]
        if what == "blocks":
            disk.fill(leave * 4096)
        else:
            disk.use_up_inodes(leave)

    @precondition(lambda self: self._is_full())
    @rule()
    def make_space(self) -> None:
        self._have_room()

    # -- disks that go away ------------------------------------------------------------------------

    def _close_all(self) -> None:
        for disk in self.disks.values():
            disk.close_all()

    def _close_somehow(self, how: str) -> None:
        """The volume ends; it may not be able to do so in order."""
        with suppress(FusejournalError, OSError):
            self._close(how)
        self._close_all()

    @precondition(lambda self: self.opened is not None)
    @rule(
        sides=st.sampled_from((("state",), ("backing",), ("backing", "state"))),
        rolls=st.lists(_ROLLS, max_size=4),
        how=st.sampled_from(("kill", "kill first", "order")),
    )
    def lose_disks(self, sides: tuple[str, ...], rolls: list[bytes], how: str) -> None:
        """Loses what was not written to them; the machine is still the same."""
        assert self.opened is not None
        journal = self.opened.volume.journal
        before, head_seq = self._builder.model.image(), journal.head_seq
        if how == "kill first":
            self._close_somehow("kill")
        for side in sides:
            self.disks[side].lose()
        if self.opened is not None:
            self._try(rolls)
            self._close_somehow(how)
        durable_seq = journal.durable_seq
        for side in sides:
            self.disks[side].come_back()
        self._open(expect_quiet=False)
        assert self.opened is not None
        assert self.opened.opening.system_crash or how == "order"
        assert self.opened.volume.journal.head_seq >= durable_seq
        if sides == ("backing",):
            assert self.opened.volume.journal.head_seq >= head_seq
            if how == "kill first" or not rolls:
                assert not (found := difference(before, self._builder.model.image())), found

    def _try(self, rolls: list[bytes]) -> Seq:
        """Do what *rolls* stand for, as far as a disk that is gone lets it come. Returns the last
        entry that was answered."""
        assert self.opened is not None
        volume = self.opened.volume
        answered_seq = volume.journal.head_seq
        self.is_blind = True
        for one in rolls:
            made = self._made(one)
            if made is not None:
                with suppress(FusejournalError, OSError):
                    answered_seq = volume.commit(*made)
                    self._builder.model.apply(made[0], 0, made[2])
        return answered_seq

    @precondition(lambda self: self.opened is not None)
    @rule(
        side=_SIDES,
        rolls=st.lists(_ROLLS, max_size=4),
        how=st.sampled_from(("kill", "order")),
    )
    def unmount_under_it(self, side: str, rolls: list[bytes], how: str) -> None:
        """A lazy unmount: what is open goes on, what goes by a path fails."""
        self.disks[side].unmount(lazily=True)
        answered_seq = self._try(rolls)
        self._close_somehow(how)
        self.disks[side].mount()
        self._open(expect_quiet=False)
        opened = self.opened
        assert opened is not None
        assert opened.volume.journal.head_seq >= answered_seq

    @precondition(lambda self: self.opened is not None)
    @rule(side=_SIDES, how=st.sampled_from(("kill", "order")))
    def mount_anew(self, side: str, how: str) -> None:
        """An admin does it, between two runs of the volume."""
        before = self._builder.model.image()
        self._close(how)
        self._close_all()
        self.disks[side].come_back()
        self._open(expect_quiet=how == "order")
        assert not (found := difference(before, self._builder.model.image())), found

    def _leave_places(self) -> None:
        self._close_all()
        self._stack.close()


def test_lives_on_small_disks() -> None:
    with own_mounts():
        live(DiskLives, 12)
