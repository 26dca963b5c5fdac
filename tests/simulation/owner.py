"""The surroundings of a simulated node's process: the report of its start, and the mounted node
that it would be."""

import re
from typing import TYPE_CHECKING, Final

import trio

from fusejournal.node import node as mounted
from fusejournal.node.state_dir import VolumeState
from fusejournal.roles.role import Event
from fusejournal.types import Reign
from tests.support.volumes import OpenVolume, Quiet

if TYPE_CHECKING:
    from tests.simulation.node import Node


_WAITS: Final = "no peer has answered yet"
_BEGIN_ALONE: Final = re.compile(r'begin_alone = "([^"]*)"')


class Noting(Quiet):
    """Has what a start of *node* warns of in the world's trace, once."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._last = ""

    def ready(self, imported: int) -> None: ...

    def warning(self, message: str) -> None:
        if (told := _BEGIN_ALONE.search(message)) is not None:
            self._node.could_begin = told[1]
        self._node.waits_for_peers = _WAITS in message
        if message != self._last:
            self._last = message
            self._node.cluster.world.note(f"{self._node.name}: {message}")


class Owner:
    """Stands in for the mounted node that *node*'s process would be, which has *side* open, where
    handoffs ask for one: the record of its role, and its end."""

    note_offered = mounted.Node.note_offered
    become_primary = mounted.Node.become_primary

    def __init__(self, node: "Node", side: OpenVolume) -> None:
        self._node = node
        self._side = side
        self.saving = trio.Lock()
        self.next_role: tuple[Event, Reign] | None = None

    @property
    def state(self) -> VolumeState:
        """The record."""
        return self._node.record

    @state.setter
    def state(self, record: VolumeState) -> None:
        self._node.record = record

    def end_in_role(self, event: Event, reign: Reign) -> None:
        """End, and go on in another role."""
        self.next_role = event, reign
        self._side.volume.refuse_changes()
        self._side.becomes_mirror = event is Event.DEMOTED
        self._node.leave()

    def listens_at(self) -> str:
        """The place where other nodes connect to."""
        return str(self._node.machine.address)

    async def call_after_hooks(self) -> None:
        """Return at once: it has none."""
        await trio.lowlevel.checkpoint()

    def serve_held(self) -> None:
        """Nothing is held but by its callers."""
