"""The surroundings of a simulated node's process: the report of its start, and its role."""

import re
from typing import TYPE_CHECKING, Final

import trio

from fusejournal.node.hooks import RoleHooks
from fusejournal.node.running_role import RunningRole
from fusejournal.node.state_dir import VolumeState
from fusejournal.replication.supervisor import Replication
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


class SimulatedRole(RunningRole):
    """The role of *node*, whose process has *side* open."""

    def __init__(self, node: "Node", side: OpenVolume, hooks: RoleHooks) -> None:
        self._node = node
        self._side = side
        super().__init__(node.record, side.opening, hooks, str(node.machine.address))

    @property
    def state(self) -> VolumeState:
        """The record."""
        return self._node.record

    @state.setter
    def state(self, record: VolumeState) -> None:
        self._node.record = record

    def end_in(self, event: Event, reign: Reign) -> None:
        """End, and go on in another role."""
        super().end_in(event, reign)
        self._side.becomes_mirror = event is Event.DEMOTED
        self._node.leave()

    async def call_after_hooks(self, replication: Replication) -> None:
        """Return at once: it has none."""
        await trio.lowlevel.checkpoint()
