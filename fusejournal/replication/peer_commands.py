"""Answers what an admin asks of a running node about its peers: the control commands behind
``fusejournal peer`` and ``fusejournal pair``.

=======================  ===========================================================================
``peer-add``             name, address, standby -> PeerAdded
``peer-remove``          name -> PeerRemoved
``peer-list``            -> PeerList
``peer-pause, -resume``  name -> PeerChanged
``pair-open``            -> OpenedCode; takes back the code that was open
``pair-state``           id -> PairingState
``pair-close``           id -> PairingState
``pair-with``            name, address, code, standby -> PairedWith: pairs with the node that
                         listens there
=======================  ===========================================================================

The answers are in peer_replies.py. Each comes once and soon; a command that waits for a pairing
asks ``pair-state`` again and again. A change is in the file before it is answered and before
``changed`` is called; one that cannot be saved is taken back. Everything runs in the node's event
loop; files are written in threads."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from fusejournal.address import Address, check_peer_name, parse_remote
from fusejournal.control.server import Command
from fusejournal.errors import (
    FusejournalError,
    PairingError,
    PeerLostError,
    UsageError,
)
from fusejournal.replication.peer_info import describe
from fusejournal.replication.peer_replies import (
    OpenedCode,
    PairedWith,
    PairingState,
    PeerAdded,
    PeerChanged,
    PeerList,
    PeerRemoved,
)
from fusejournal.replication.peers import PeerBook
from fusejournal.wire import pairing
from fusejournal.wire.code_state import CodeState
from fusejournal.wire.connection import Connection
from fusejournal.wire.identity import Identity
from fusejournal.wire.pairing import OpenCode, Paired
from fusejournal.wire.transport import connect_for_pairing

log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 10.0
_PAIR_SECONDS: Final = 25.0
"""Less than the command line waits for an answer."""
_LINES_MAX: Final = 20


class _Opened:
    """A code that was given out, and what became of it."""

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.text = pairing.new_code()
        self.code = OpenCode(self.text, now)
        self.lines: deque[str] = deque(maxlen=_LINES_MAX)
        self.logged = 0
        """Lines in all."""
        self.peer: str | None = None
        """The peer that was paired by it."""
        self.has_failed = False
        """True if it was used up, and no peer was paired."""


class PeerCommands:
    """The commands of one node.

    Args:
        book: its peers.
        identity, node: its key and certificate, and its name.
        changed: called, in the event loop, when the book has changed.
        listening: returns the address where it listens, None where it does not.
        insecure: peers may be without TLS."""

    def __init__(
        self,
        book: PeerBook,
        identity: Identity,
        node: str,
        changed: Callable[[], None],
        listening: Callable[[], Address | None],
        *,
        insecure: bool = False,
    ) -> None:
        self._book = book
        self._identity = identity
        self._node = node
        self._changed = changed
        self._listening = listening
        self._insecure = insecure
        self._changing = trio.Lock()
        self._opened: _Opened | None = None
        self._numbers = 0

    def commands(self) -> dict[str, Command]:
        """Returns the commands for control/server.py."""
        return {
            "peer-add": self._add,
            "peer-remove": self._remove,
            "peer-list": self._list,
            "peer-pause": self._pause,
            "peer-resume": self._resume,
            "pair-open": self._open,
            "pair-state": self._state,
            "pair-close": self._close,
            "pair-with": self._pair_with,
        }

    # -- peers -------------------------------------------------------------------------------------

    async def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        name, address = _name(request), parse_remote(_text(request, "address"))
        standby = bool(request.get("standby"))
        added = await self._change(name, lambda: self._book.add(name, address, standby=standby))
        peer = describe(self._book.get(name))
        return PeerAdded(added=added, insecure=self._insecure, peer=peer).to_json()

    async def _remove(self, request: dict[str, Any]) -> dict[str, Any]:
        peer = self._book.get(_name(request))
        await self._change(peer.name, lambda: self._book.remove(peer.name))
        return PeerRemoved(peer=describe(peer)).to_json()

    async def _list(self, _: dict[str, Any]) -> dict[str, Any]:
        return PeerList(
            node=self._node,
            fingerprint=self._identity.fingerprint,
            peers=tuple(describe(peer) for peer in self._book.list()),
        ).to_json()

    async def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        name = _name(request)
        changed = await self._change(name, lambda: self._book.pause(name))
        return PeerChanged(changed=changed, peer=describe(self._book.get(name))).to_json()

    async def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        name = _name(request)
        changed = await self._change(name, lambda: self._book.resume(name))
        return PeerChanged(changed=changed, peer=describe(self._book.get(name))).to_json()

    async def _change(self, name: str, change: Callable[[], bool | None]) -> bool:
        """Make a change to the peer *name*, save it, and tell. Not cancelled half-way: what is on
        disk and what is in memory stay the same. Raises FusejournalError, and nothing is changed.
        """
        async with self._changing:
            before = self._book.find(name)
            has_changed = bool(change())
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(self._book.save)
                except FusejournalError:
                    self._book.put_back(name, before)
                    raise
        self._changed()
        return has_changed

    # -- the node that listens ---------------------------------------------------------------------

    async def _open(self, _: dict[str, Any]) -> dict[str, Any]:
        address = self._listening()
        if address is None:
            raise UsageError(
                "this node does not listen: mount it with --listen ADDR:PORT, or give the code out "
                "on the other node and pair from here: fusejournal pair VOLUME NAME=ADDR:PORT CODE"
            )
        if self._opened is not None:
            self._opened.code.close()
        self._numbers += 1
        self._opened = opened = _Opened(self._numbers, trio.current_time())
        return OpenedCode(
            id=opened.number,
            code=opened.text,
            node=self._node,
            fingerprint=self._identity.fingerprint,
            listen=str(address),
            seconds_left=opened.code.seconds_left(trio.current_time()),
        ).to_json()

    async def _state(self, request: dict[str, Any]) -> dict[str, Any]:
        opened = self._opened
        if opened is None or opened.number != request.get("id"):
            # A newer code was given out, or this is another process by now.
            return PairingState(state=CodeState.CLOSED).to_json()
        now = trio.current_time()
        state, peer = opened.code.state(now), None
        if state is CodeState.USED:
            # Between the right proof and the saved book it is not done yet.
            state = CodeState.FAILED if opened.has_failed else CodeState.WAITING
            peer = self._book.find(opened.peer) if opened.peer is not None else None
            if peer is not None:
                state = CodeState.PAIRED
        return PairingState(
            state=state,
            seconds_left=opened.code.seconds_left(now),
            wrong_tries=opened.code.wrong_tries,
            log=tuple(opened.lines),
            logged=opened.logged,
            peer=describe(peer) if peer is not None else None,
        ).to_json()

    async def _close(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._opened is not None and self._opened.number == request.get("id"):
            self._opened.code.close()
        return await self._state(request)

    def is_open(self) -> bool:
        """Returns True if a code waits to be used."""
        opened = self._opened
        return opened is not None and opened.code.is_waiting(trio.current_time())

    async def on_pairing(self, connection: Connection) -> None:
        """Pair the node that connected (for :func:`fusejournal.wire.transport.serve`). Cancelling
        ends that. Raises PairingError, WireError, to be logged."""
        opened = self._opened

        async def keep(paired: Paired) -> None:
            await self._keep(paired.node, None, paired)
            if opened is not None:
                opened.peer = paired.node
            log.info("paired with %s, %s", paired.node, paired.fingerprint)

        code = opened.code if opened is not None else None
        try:
            await pairing.answer(
                connection, code, self._node, self._identity, trio.current_time, keep
            )
        except FusejournalError as error:
            if opened is not None:
                opened.lines.append(str(error))
                opened.logged += 1
            raise
        finally:
            if opened is not None and opened.code.is_used and opened.peer is None:
                opened.has_failed = True

    # -- the node that connects --------------------------------------------------------------------

    async def _pair_with(self, request: dict[str, Any]) -> dict[str, Any]:
        name, address = _name(request), parse_remote(_text(request, "address"))
        code = pairing.parse_code(_text(request, "code"))

        def accept(other: Paired) -> None:
            self._check(name, address, other)

        try:
            with trio.fail_after(_PAIR_SECONDS):
                async with await connect_for_pairing(
                    address, self._identity, timeout_seconds=_CONNECT_SECONDS
                ) as connection:
                    paired = await pairing.ask(connection, code, self._node, self._identity, accept)
        except trio.TooSlowError:
            raise PeerLostError(str(address), f"not paired within {_PAIR_SECONDS:g} s") from None
        await self._keep(name, address, paired, standby=bool(request.get("standby")))
        return PairedWith(peer=describe(self._book.get(name)), node=paired.node).to_json()

    async def _keep(
        self, name: str, address: Address | None, paired: Paired, *, standby: bool = False
    ) -> None:
        def change() -> None:
            self._check(name, address, paired)
            self._book.pair(name, address, paired.certificate, standby=standby)

        try:
            await self._change(name, change)
        except UsageError as error:
            raise PairingError(str(error)) from None

    def _check(self, name: str, address: Address | None, other: Paired) -> None:
        """Raise PairingError if *other* cannot be the peer *name*."""
        if other.certificate == self._identity.certificate:
            raise PairingError("this is the node itself")
        try:
            self._book.check_pairing(name, address, other.certificate)
        except UsageError as error:
            raise PairingError(str(error)) from None


def _name(request: dict[str, Any]) -> str:
    return check_peer_name(request.get("name"))


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{key} is missing")
    return value
