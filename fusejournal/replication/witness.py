"""A witness: a node without data, whose vote lets one of two nodes go on by itself. It keeps, on
its disk, the highest reign that it has seen, which reign has begun as far as it was informed, and
the record of members with what they have acknowledged (member_record.py). It takes no entry, counts
for no acknowledgement, and is never a primary.

::

    DIR/witness.json    {"format": 1, "uuid": hex, "fence": [epoch, node id],
                        "begun": [epoch, node id, seq, chain]}, mode 0600

Whatever it answers is on its disk before. A disk that is full has it refuse, with all as it was. It
becomes the witness of the volume that its first primary names. A witness that was put back from an
older copy may give a second vote for an epoch: a reason to make none from a snapshot, and to pair a
new one instead.

Used from the event loop's thread, by one task a session."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.errors import FusejournalError
from fusejournal.replication.common_ancestor import SILENCE_SECONDS
from fusejournal.replication.fence import gives_way
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.reception import Reception
from fusejournal.types import EPOCH_MAX, Epoch, Position, Reign, Seq
from fusejournal.wire.frames import Ack, Hello, MembersReport, Ping, WireError, uuid_of
from fusejournal.wire.identity import Identity, node_id_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    HANDOFF,
    OK,
    SHIP,
    VOTE,
    WITNESS,
    Claim,
    HandshakeState,
    RefusedError,
    check_members,
    reign_of,
    sends_members,
    wanted_reign,
    welcome,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.versions import versions_of

log = logging.getLogger(__name__)

WITNESS_FILE: Final = "witness.json"
_FORMAT: Final = 1
_FILE_BYTES_MAX: Final = 1 << 16
_SAVE_SECONDS: Final = 10.0
_NO_REIGN: Final = Reign(Epoch(0), 0)


@dataclass(frozen=True)
class Seen:
    """The knowledge of a witness: of which volume it is; the highest reign that it has seen; and
    the highest that has begun, with the end of its primary's journal as that reported last."""

    uuid: UUID | None = None
    fence: Reign = _NO_REIGN
    begun: Reign = _NO_REIGN
    seq: Seq = Seq(0)
    chain: int = 0

    def save(self, directory: Path) -> None:
        """Have it in the file; when it returns, that is on the disk. Blocks. Raises OSError, and
        the file is as before."""
        raw = {
            "format": _FORMAT,
            "uuid": self.uuid.hex if self.uuid is not None else None,
            "fence": self.fence,
            "begun": [*self.begun, self.seq, self.chain],
        }
        write_atomically(
            "witness", directory / WITNESS_FILE, json.dumps(raw).encode(), Outlives.MACHINE
        )


def load_seen(directory: Path) -> Seen:
    """Returns what the witness in *directory* knows. Raises FusejournalError for a file that cannot
    be used."""
    path = directory / WITNESS_FILE
    try:
        with open(path, "rb") as file:
            raw = json.loads(file.read(_FILE_BYTES_MAX))
        if raw["format"] != _FORMAT:
            raise ValueError("written by another version of fusejournal")
        numbers = [*raw["fence"], *raw["begun"]]
        if not all(type(one) is int and 0 <= one < 1 << 64 for one in numbers):
            raise ValueError("what is no number")
        fence_epoch, fence_node, epoch, node, seq, chain = numbers
        if max(fence_epoch, epoch) > EPOCH_MAX:
            raise ValueError("an epoch of which there cannot be so many")
        uuid = UUID(raw["uuid"]) if raw["uuid"] is not None else None
    except FileNotFoundError:
        return Seen()
    except OSError as error:
        raise FusejournalError(f"{path}: {error.strerror}") from None
    except UNREADABLE_JSON as error:
        raise FusejournalError(
            f"{path}: cannot be used: {error}; without it this witness might give its vote twice: "
            "begin one in another directory, and pair that"
        ) from None
    fence, begun = Reign(Epoch(fence_epoch), fence_node), Reign(Epoch(epoch), node)
    return Seen(uuid, fence, begun, Seq(seq), chain)


class Witness:
    """The witness *name* in *directory*. Raises FusejournalError for files that cannot be used."""

    def __init__(self, directory: Path, name: str, identity: Identity) -> None:
        self._directory = directory
        self._name = name
        self._node_id = node_id_of(identity.fingerprint)
        self.seen = load_seen(directory)
        self.members = MemberRecord(directory)
        self.failure: str | None = None
        """The last refusal of the disk; None where it took all since."""
        self.primary: str | None = None
        """The peer that reports who counts, as long as it does."""
        self._session: trio.CancelScope | None = None
        self.reception = Reception(self._serve_greeted)
        self._noting = trio.Lock()

    @property
    def me(self) -> HandshakeState:
        """The witness as it greets. It holds nothing: its position is what a primary reported to
        it, which proves that the reign has begun."""
        seen = self.seen
        position = Position(seen.begun.epoch, seen.seq, seen.chain)
        return HandshakeState(
            *(self._name, seen.uuid, position, seen.fence.epoch, Seq(0)),
            *(seen.fence.node_id, self._node_id),
            role=WITNESS,
            members=self.members.numbers,
        )

    async def run(self) -> None:
        """Save now and then what members hold, until cancelled."""
        while True:
            await trio.sleep(_SAVE_SECONDS)
            with suppress(FusejournalError):  # a full disk: it is tried again
                await self.members.save()

    async def _serve_greeted(self, session: SessionConnection, greeting: Hello) -> None:
        if greeting.purpose == HANDOFF:
            raise RefusedError(
                RefusalCode.HANDOFF, f"{self._name} is a witness, and has no data to serve"
            )
        if not sends_members(self.me.versions, versions_of(greeting)):
            raise RefusedError(
                RefusalCode.VERSION, f"{self._name} is a witness: upgrade {greeting.node}"
            )
        if greeting.purpose == VOTE:
            await self._give_vote(greeting)
            await session.send(welcome(self.me, greeting, is_mirror=True))
        elif greeting.purpose == FETCH:
            await session.send(welcome(self.me, greeting, is_mirror=True))
        elif greeting.purpose == SHIP:
            await self._receive_members(session, greeting)
        else:
            raise WireError(f"a session for {greeting.purpose!r}")

    # -- votes -------------------------------------------------------------------------------------

    async def _give_vote(self, greeting: Hello) -> None:
        """Have on the disk that nothing lower than the reign *greeting* asks for counts any more.
        Raises RefusedError where that may not be, WireError."""
        async with self._noting:
            reign = wanted_reign(self.me, greeting)
            if self.seen.fence.after(reign) != self.seen.fence:
                await self._save(replace(self.seen, fence=reign))
                log.warning("%s has the vote for reign %s", greeting.node, reign)
            if self._session is not None and self.seen.begun.epoch < reign.epoch:
                self._session.cancel()

    def _check_ended(self, greeting: Hello) -> None:
        """Raises RefusedError where *greeting* is a primary's of a lower reign than one that has
        begun, with what proves that."""
        theirs, seen = reign_of(greeting), self.seen
        if greeting.held_epoch != theirs.epoch or theirs.epoch >= seen.begun.epoch:
            return
        raise RefusedError(
            RefusalCode.FENCED,
            f"{greeting.node} is of epoch {theirs.epoch}, and a primary of epoch "
            f"{seen.begun.epoch} has come after it (reign {seen.begun})",
            Claim(seen.begun, seen.begun.epoch, seen.seq, seen.chain),
        )

    # -- what a primary tells ----------------------------------------------------------------------

    async def _receive_members(self, session: SessionConnection, greeting: Hello) -> None:
        """Hear from a primary who counts, until it goes. Raises RefusedError, WireError,
        FusejournalError, trio.TooSlowError."""
        await self._follow(greeting)
        if self._session is not None:
            self._session.cancel()
        with trio.CancelScope() as scope:
            # Nothing was awaited since it was looked at who reigns: a vote ends this from here on.
            self._session, self.primary = scope, session.peer or greeting.node
            try:
                await session.send(welcome(self.me, greeting, is_mirror=True))
                await self._hear(session, reign_of(greeting))
            finally:
                if self._session is scope:
                    self._session = self.primary = None

    async def _follow(self, greeting: Hello) -> None:
        uuid, reign = uuid_of(greeting.uuid), reign_of(greeting)
        async with self._noting:
            self._check_ended(greeting)
            me = self.me
            if gives_way(me, reign) and greeting.held_epoch == reign.epoch:
                me = me._replace(fence=me.position.epoch, reign_node=0)
            welcome(me, greeting, is_mirror=True)  # (its checks, by reigns, too)
            if uuid is None:
                raise RefusedError(RefusalCode.UNINITIALIZED, f"{greeting.node} has no volume yet")
            if greeting.held_epoch != reign.epoch:
                raise RefusedError(RefusalCode.ROLE, f"{greeting.node} has not begun reign {reign}")
            if reign.node_id not in (0, greeting.node_id):  # (as a former primary would)
                reason = f"{greeting.node} follows reign {reign}, and its primary tells who counts"
                raise RefusedError(RefusalCode.ROLE, reason)
            begun = replace(self.seen, uuid=uuid, fence=self.seen.fence.after(reign), begun=reign)
            await self._save(replace(begun, seq=greeting.seq, chain=greeting.chain))

    async def _hear(self, session: SessionConnection, reign: Reign) -> None:
        while True:
            with trio.fail_after(SILENCE_SECONDS):
                message: MembersReport | Ping | None = await session.receive_or_end()
            if message is None:
                return
            if isinstance(message, MembersReport) and self.members.note(
                check_members(message.members, reign)
            ):
                try:
                    await self.members.save()
                    self.failure = None
                except FusejournalError as error:  # as a full disk is: it is not acknowledged
                    self._failed(str(error))
            nothing, version = Seq(0), self.members.version_on_disk(reign)
            await session.send(Ack(nothing, nothing, nothing, OK, "", nothing, version))

    async def _save(self, seen: Seen) -> None:
        """Have *seen* on the disk. Raises RefusedError: all is as before."""
        if seen == self.seen:
            return
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(seen.save, self._directory)
            except OSError as error:
                self._failed(f"{self._directory / WITNESS_FILE}: cannot be saved: {error.strerror}")
                raise RefusedError(RefusalCode.FAILED, f"{self._name}: {self.failure}") from None
            self.seen, self.failure = seen, None

    def _failed(self, failure: str) -> None:
        if failure != self.failure:
            log.warning("%s", failure)
        self.failure = failure
