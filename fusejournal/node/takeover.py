"""The mount of a running volume: made anew, or taken over from a layer that has ended; held for the
next layer; and taken away.

Owns the connection and its holder (layer/connection.py). What the kernel remembers wrongly of a
mount that was taken over is found before the first request and dropped right after it. Belongs to
the event loop; what makes the kernel send requests to the layer runs in a thread."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from fusejournal.disk import mounts
from fusejournal.errors import FusejournalError, JournalError, MountError
from fusejournal.journal.handle_key import HandleKey
from fusejournal.journal.reader import JournalReader
from fusejournal.layer import lost_replies
from fusejournal.layer.connection import ConnectionHolder, KernelConnection, open_new
from fusejournal.node.spec import MountSpec
from fusejournal.types import Fid, Seq

log = logging.getLogger(__name__)

_RESTART_SECONDS = 60.0


def connection_record(state_dir: Path) -> Path:
    """The file in the state directory that says who holds the connection."""
    return state_dir / "connection"


class VolumeMount:
    """The mount of one run.

    Args:
        spec: what was asked for.
        root_fd, table_fd: descriptors of the backing's root and of the table of open files.
        taken: the connection that was taken over; None: a new one is made.
        was_dead: a dead mount is there, to be replaced.
        stays_covered: the attribute of that name."""

    def __init__(
        self,
        spec: MountSpec,
        root_fd: int,
        table_fd: int,
        taken: KernelConnection | None,
        was_dead: bool,
        *,
        stays_covered: bool = False,
    ) -> None:
        self._spec = spec
        self.stays_covered = stays_covered
        """True if the dead mount stays beneath the new one, so that no process gets at what it
        covers in between, until this one is taken away."""
        self.root_fd = root_fd
        self.table_fd = table_fd
        self._taken = taken
        self.was_dead = was_dead
        self._connection: KernelConnection | None = taken
        self._holder: ConnectionHolder | None = None
        self._stale = lost_replies.Stale(set(), set())

    @property
    def is_taken_over(self) -> bool:
        """True if another process served this mount before."""
        return self._taken is not None

    @property
    def is_held(self) -> bool:
        """True while the mount outlives this process, for another to take it over."""
        return self._holder is not None

    @property
    def connection(self) -> KernelConnection:
        """The connection, once :meth:`connect` has made it."""
        assert self._connection is not None, "connect() comes first"
        return self._connection

    def connect(self) -> KernelConnection:
        """Make the mount, if it was not taken over. Raises MountError."""
        if self._connection is None:
            spec = self._spec
            if self.stays_covered:
                mounts.leave_one_dead(spec.mountpoint)
            elif self.was_dead:
                mounts.clear_dead_mount(spec.mountpoint)
            self._connection = open_new(
                self.root_fd, self.table_fd, spec.mountpoint, spec.name, self._flags
            )
        return self._connection

    @property
    def _flags(self) -> frozenset[str]:
        return self._spec.mount_flags | ({"ro"} if self._spec.read_only else frozenset())

    def give_up(self) -> None:
        """Close the connection: the mount is dead from now on, until another takes its place."""
        os.close(self.connection.fd)

    def uncover(self) -> None:
        """Take away a dead mount that was left beneath this one, which is gone by now: by this
        process or the one whose mount it has taken over."""
        if not self.is_there():
            with suppress(FusejournalError, OSError):
                mounts.clear_dead_mount(self._spec.mountpoint)

    def is_there(self) -> bool:
        """True while the kernel has the mount."""
        return mounts.device_of(self._spec.mountpoint) == self.connection.device

    # -- what the kernel remembers -----------------------------------------------------------------

    def find_unanswered(self, reader: JournalReader, durable_seq: Seq, first_seq: Seq) -> None:
        """Finds, before the first request of a mount that was taken over, the entries before
        *first_seq* whose answers may be lost. Of what is durable up to *durable_seq* they were
        given."""
        if self._taken is None or self._taken.all_answered:
            return
        try:
            self._stale = lost_replies.find_unanswered(reader, durable_seq, first_seq)
        except JournalError as error:
            log.warning("the kernel may remember what is not so any more: %s", error)

    async def invalidate_unanswered(
        self, lookup: Callable[[Fid, bytes], Fid | None], handle_key: HandleKey
    ) -> None:
        """Has the kernel forget what they have changed, at once after its first request, because
        a caller whose answer was lost is about to try again. *lookup* is the catalog's. Cancelling
        leaves the kernel with what it has not forgotten yet."""
        found = await trio.to_thread.run_sync(
            lost_replies.invalidate,
            self._stale,
            self.connection,
            self._spec.mountpoint,
            handle_key,
        )
        wrong = [
            (parent, name) for parent, name, fid in found if (lookup(parent, name) or 0) != fid
        ]
        await trio.to_thread.run_sync(lost_replies.forget, wrong)

    async def give_flags(self) -> None:
        """Give a mount that was taken over the options that this process was started with, where
        the one before had others. (Else it keeps what a remount may have given it.) Cancelling
        leaves them noted as unknown. Raises OSError."""
        if self.connection.flags == self._flags:
            return
        self._note_flags(None)  # in the midst of it they are not known
        await trio.to_thread.run_sync(mounts.change_flags, self._spec.mountpoint, self._flags)
        self._note_flags(self._flags)

    def _note_flags(self, flags: frozenset[str] | None) -> None:
        self.connection.note_flags(flags)
        if self._holder is None:
            return
        try:
            self._holder.note(self.connection)
        except OSError as error:
            log.warning("the next layer may take this mount to have other options: %s", error)

    # -- holding it for another process ------------------------------------------------------------

    def hold(self, at_least_seconds: float = 0.0) -> None:
        """Have the connection held beside this process. Where no process can be started for that,
        the log says so."""
        try:
            self._holder = ConnectionHolder(
                self.connection,
                connection_record(self._spec.state_dir),
                max(self._spec.config.volume.hold_seconds, at_least_seconds),
                self._spec.backing,
                self._spec.mountpoint,
            )
        except OSError as error:
            log.warning("if this layer dies, its mount dies with it: %s", error)

    def hold_if(self, is_wanted: bool) -> None:
        """Have it held, or not any more."""
        if is_wanted and self._holder is None:
            self.hold()
        elif not is_wanted:
            self.let_go()

    def hold_for_restart(self) -> None:
        """Have it held long enough for this process to begin again. Raises MountError."""
        if self._holder is not None and (
            not self._holder.is_alive() or self._spec.config.volume.hold_seconds < _RESTART_SECONDS
        ):
            self.let_go()
        if self._holder is None:
            self.hold(at_least_seconds=_RESTART_SECONDS)
        if self._holder is None:
            raise MountError(f"{self._spec.mountpoint}: the mount cannot be kept: see the log")

    def note_all_answered(self) -> None:
        """Every request that was read is answered: the next process need look for none."""
        if self._holder is not None:
            self._holder.all_is_answered()

    def let_go(self) -> None:
        """Have it held no more."""
        if self._holder is not None:
            self._holder.dismiss()
            self._holder = None
