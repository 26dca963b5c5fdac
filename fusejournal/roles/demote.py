"""Brings a running primary to the point where its process may make it a mirror: it takes no more
changes, and its mirrors have all that it has.

Until the role itself changes, when the volume is closed (node/start.py), all of it can be taken
back. Used from the event loop's thread."""

import logging
from collections.abc import Sequence

import trio

from fusejournal.disk import failpoints
from fusejournal.errors import DemotionRefusedError
from fusejournal.replication.supervisor import Replication
from fusejournal.types import Reign
from fusejournal.volume.volume import Volume

log = logging.getLogger(__name__)

DRAIN_SECONDS_MAX = 3600.0
"""The longest that mirrors are waited for."""
_POLL_SECONDS = 0.005


class Demotion:
    """The demotion of the primary that *replication* runs for *volume*."""

    def __init__(self, volume: Volume, replication: Replication) -> None:
        self._volume = volume
        self._replication = replication

    async def prepare(self, *, force: bool, timeout_seconds: float) -> Reign:
        """Refuse changes with EROFS, once none is half done that is many entries, and return when
        all mirrors that are connected, one at least, have everything on their disks; at once where
        another already reigns. Returns the reign that the node goes by as a mirror. Cancelled,
        changes are taken again.

        Raises DemotionRefusedError, and changes are taken again, where not all have it after
        *timeout_seconds*, and not *force*; where one is half done for as long; and where this
        volume has failed."""
        volume, replication = self._volume, self._replication
        fence, epoch = replication.local.fence, volume.journal.epoch
        if replication.quorum.is_fenced:
            return fence.seen
        self._check_taking()
        with trio.move_on_after(timeout_seconds):
            while volume.in_pieces:  # noqa: ASYNC110 -- it is in other tasks' hands
                await trio.sleep(_POLL_SECONDS)
        if volume.in_pieces:
            raise DemotionRefusedError(
                "not demoted: a change of many entries, such as the naming of a large file, is "
                "half done: try again when it is over"
            )
        self._check_taking()
        # From here to the end of the process, or of this call, the journal has no new entry.
        volume.refuse_changes()
        is_done = False
        try:
            await replication.durability.flush()
            with trio.move_on_after(timeout_seconds):
                while self._lacking():  # noqa: ASYNC110 -- it is in the mirrors' hands
                    await trio.sleep(_POLL_SECONDS)
            failpoints.reached("demote.drained")
            lacking = self._lacking()
            if lacking and not force:
                raise DemotionRefusedError(f"not demoted: {'; '.join(lacking)}")
            if lacking:
                log.warning("demoted by force: %s", "; ".join(lacking))
            is_done = True
        finally:
            if not is_done:
                volume.take_changes()
        return Reign(epoch, fence.own(epoch).node_id or replication.local.node_id)

    def _check_taking(self) -> None:
        volume = self._volume
        if volume.failure is not None or volume.write_errno is not None:
            raise DemotionRefusedError(
                f"this volume is read-only, and cannot tell what its mirrors should have: "
                f"{volume.failure or 'it is to be read'}"
            )

    def _lacking(self) -> Sequence[str]:
        """Returns which mirrors lack something, or that none has all, a line each."""
        head_seq = self._volume.journal.head_seq
        records = [one for one in self._replication.records() if not one.is_witness]
        connected = [one for one in records if one.is_connected]
        if not connected:
            return ["no mirror is connected, and so no other node has what this node has"]
        return [
            f"peer {one.name} has entries up to {one.acked_seq} on its disk, of {head_seq}"
            for one in connected
            if one.acked_seq < head_seq
        ]
