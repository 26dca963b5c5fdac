"""Finds where the journal of this node parts from a peer's: asked of the peer by a node that is not
mounted, or as the last primary said while it was (STATE/parted.json).

The asking side is a sink that only wants to know (common_ancestor.py), and greets as one that
fetches. It gives its own end, or, where the peer's journal is shorter, the entry up to which that
goes: so it takes two connections at most. It believes what the peer says as far as its own journal
allows.

A lower reign never wins: a peer that goes by a lower one than this node has seen is not
followed."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import trio

from fusejournal.disk.files import UNREADABLE_JSON, Outlives, remove, write_atomically
from fusejournal.disk.json_records import checked, read_object, reign_of_list
from fusejournal.errors import FusejournalError
from fusejournal.replication.common_ancestor import SILENCE_SECONDS, ChainFinder, answer_chains
from fusejournal.replication.peers import Peer
from fusejournal.types import Position, Reign, Seq
from fusejournal.wire.frames import Diverged, End, Welcome, WireError
from fusejournal.wire.identity import Identity
from fusejournal.wire.session import (
    FETCH,
    HandshakeState,
    check_followed,
    hello,
    reign_of,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect

PARTED_FILE: Final = "parted.json"
_FORMAT: Final = 1
_CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Parting:
    """The place where this node's journal and a peer's part."""

    peer: str
    """The peer's name here."""
    node: str
    """The name by which the peer calls itself."""
    reign: Reign
    """The reign that it goes by."""
    seq: Seq
    """The last entry that both have."""
    chain: int
    """The chain of the last entry that both have."""
    their_head_seq: Seq
    """The end of the peer's journal."""

    def keep(self, state_dir: Path) -> None:
        """Keep it for a later rejoin. Raises OSError."""
        if load_parting(state_dir) == self:
            return
        content = json.dumps({"format": _FORMAT, **asdict(self)}).encode()
        write_atomically("parted", state_dir / PARTED_FILE, content, Outlives.PROCESS)


def load_parting(state_dir: Path) -> Parting | None:
    """Returns what the last primary reported, as *state_dir* has it; None where none has, or
    nothing that can be understood."""
    try:
        raw = read_object(state_dir / PARTED_FILE)
        if raw.pop("format") != _FORMAT:
            return None
        return checked(Parting(**{**raw, "reign": reign_of_list(raw["reign"])}))
    except (FileNotFoundError, *UNREADABLE_JSON):
        return None


def forget_parting(state_dir: Path) -> None:
    """The two journals are one again. Raises OSError."""
    if (state_dir / PARTED_FILE).exists():
        remove("parted.forget", state_dir / PARTED_FILE)


class PartingInquiry:
    """Asks peers, as the node *me*, whose journal is in *directory*. *insecure*: those without a
    certificate are called in plain."""

    def __init__(
        self, me: HandshakeState, directory: Path, identity: Identity, *, insecure: bool
    ) -> None:
        assert me.uuid is not None
        self._me = me
        self._chains = ChainFinder(directory, me.uuid)
        self._identity = identity
        self._insecure = insecure

    async def ask(self, peer: Peer) -> Parting:
        """Returns where the journal parts from *peer*'s: with this one's end, where it does not.
        Cancelling is harmless. Raises RefusedError, WireError, JournalDamagedError, OSError,
        trio.TooSlowError."""
        me = self._me
        async with await self._connect(peer) as session:
            theirs = await self._greet(session, me)
            if theirs.seq >= me.position.seq:
                return await self._compare(session, peer, theirs, me.position)
        # It would not look for more than it has itself.
        (chain,) = await self._chains.at((Seq(theirs.seq),))
        if chain is None:
            raise FusejournalError(f"{peer.name}: ends with entry {theirs.seq}, which is not here")
        position = me.position._replace(seq=Seq(theirs.seq), chain=chain)
        async with await self._connect(peer) as session:
            theirs = await self._greet(session, me._replace(position=position))
            return await self._compare(session, peer, theirs, position)

    async def _connect(self, peer: Peer) -> SessionConnection:
        assert peer.any_address is not None
        connection = await connect(
            peer.any_address,
            self._identity,
            peer.certificate,
            insecure=self._insecure,
            timeout_seconds=_CONNECT_SECONDS,
        )
        return SessionConnection(connection, Side.CONNECTOR)

    async def _greet(self, session: SessionConnection, me: HandshakeState) -> Welcome:
        with trio.fail_after(SILENCE_SECONDS):
            await session.send(hello(me, FETCH))
            return check_followed(me, await session.receive())

    async def _compare(
        self, session: SessionConnection, peer: Peer, theirs: Welcome, mine: Position
    ) -> Parting:
        parting = Parting(
            peer.name, theirs.node, reign_of(theirs), mine.seq, mine.chain, theirs.seq
        )
        message = await answer_chains(session, self._chains)
        if isinstance(message, Diverged):
            (chain,) = await self._chains.at((message.seq,))
            if not message.seq < mine.seq or chain is None:
                raise WireError(f"{peer.name}: parts at {message.seq}, which cannot be")
            return replace(parting, seq=message.seq, chain=chain)
        if isinstance(message, End):
            raise WireError(f"{peer.name}: its journal has become shorter: try again")
        if (message.seq, message.chain) != mine[1:]:
            raise WireError(f"{peer.name}: begins at {message.seq}, not at {mine.seq}")
        return parting
