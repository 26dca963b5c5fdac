"""The role of a running volume: its record on the disk, the hooks around a change of it, and the
change that is due once the volume is closed.

The node (node.py) and its handoffs (handoffs.py) hold one. Used from the event loop's thread, but
for :meth:`RunningRole.become_primary`."""

from uuid import UUID

import trio

from fusejournal.errors import JournalFullError
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.state_dir import (
    Offered,
    VolumeState,
    change_role,
    join_volume,
    load_state,
    note_offer,
    remember_listen,
)
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.role import Event
from fusejournal.types import Reign
from fusejournal.volume.startup import VolumeStartup


class RunningRole:
    """The role of the volume with *state*, which *startup* has opened or will. *hooks* are called
    around a change; *listen*: where the configuration has it listen."""

    def __init__(
        self, state: VolumeState, startup: VolumeStartup, hooks: RoleHooks, listen: str | None
    ) -> None:
        self.state = state
        """The volume, as its state directory has it by now."""
        self.saving = trio.Lock()
        """Held by the task that writes the state down while others may, too."""
        self.next: tuple[Event, Reign] | None = None
        """The change that is due once the volume is closed, if one is."""
        self.hooks = hooks
        self._startup = startup
        self._listen = listen
        self._due = trio.Event()

    @property
    def listens_at(self) -> str | None:
        """The place where other nodes connect to; None: nowhere."""
        return self.state.listens_at(self._listen)

    def join_volume(self, uuid: UUID) -> None:
        """Make this mirror, which has no journal yet, one of volume *uuid*. Raises OSError."""
        self.state = join_volume(self.state, uuid)

    def remember_listen(self, listen: str) -> None:
        """Note where it listens, for later mounts. Raises OSError."""
        self.state = remember_listen(self.state, listen)

    async def note_offered(self, offered: Offered | None) -> None:
        """Have on the disk which reign is offered, and to whom, or that none is. Cancelling waits
        for that. Raises FusejournalError, OSError."""
        with trio.CancelScope(shield=True):
            async with self.saving:
                if self.state.offered != offered:
                    self.state = await trio.to_thread.run_sync(note_offer, self.state, offered)

    def become_primary(self, reign: Reign) -> None:
        """Have this mirror be the primary of *reign*, on the disk. Any thread; blocks. Raises
        JournalFullError, OSError, and then it is none."""
        try:
            self.state = change_role(self.state, Event.PROMOTED, reign)
        except (JournalFullError, OSError):
            found = load_state(self.state.directory)
            if found.reign != reign:
                raise
            self.state = found  # it is there for the next start, and so for this one

    def end_in(self, event: Event, reign: Reign) -> None:
        """Have the node end, and go on in the role that *event* leads to, with *reign*. Callers who
        wait for a change are refused."""
        self.next = event, reign
        self._startup.volume.refuse_changes()
        self._due.set()

    def stay(self) -> None:
        """Have no change be due."""
        self.next = None

    async def wait_until_due(self) -> None:
        """Return once the node is to end for a change. Cancelling is harmless."""
        await self._due.wait()

    async def call_after_hooks(self, replication: Replication) -> None:
        """Call the hooks that come after a change of role, unless this is neither a primary that
        takes changes nor a mirror. Cancelling ends the program that runs."""
        startup, state = self._startup, self.state
        if startup.volume.write_errno is not None and not state.is_mirror:
            return
        reign = str(replication.me().reign)
        startup.note_degraded(await self.hooks.after(state.role_word, reign, ""))
