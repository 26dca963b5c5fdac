"""The listener: accepts connections, finds out which peer each is from, and hands it on.

A stranger, of which no peer is known yet, costs little, whatever it does: there are at most
``_STRANGERS_MAX`` at a time, of which one makes room for a new one, and so many handshakes a second
(admission.py decides whose); each has ten seconds to prove who it is, a few KiB, and a line in the
log, or one for many (log_limiter.py). TLS contexts are there already (contexts.py), and there is no
handshake for pairing while no code is open. No stranger ends the server, nor does a handler that
fails.

One task per connection, in the nursery of :func:`serve`."""

import errno
import hmac
import os
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

import trio

from fusejournal.address import Address
from fusejournal.disk.errnos import EXHAUSTED
from fusejournal.errors import FusejournalError, ListenError
from fusejournal.wire.admission import Admission
from fusejournal.wire.connection import (
    CLOSED,
    NO_PAIRING,
    OPEN,
    OPEN_UNPROVED,
    PAIR,
    PREAMBLE_BYTES,
    READY,
    TLS,
    Connection,
    LingeringStream,
    TlsStream,
    open_tls,
    peer_certificate,
    receive_exactly,
    remote,
    set_options,
    unsent,
    why,
)
from fusejournal.wire.contexts import context_for, context_for_pairing
from fusejournal.wire.identity import (
    UNUSABLE,
    Identity,
    fingerprint_of,
    fingerprint_of_der,
    node_id_of,
)
from fusejournal.wire.log_limiter import LogLimiter, network_of
from fusejournal.wire.passes import PassCheck, name_asked
from fusejournal.wire.plain import CONNECTS, LISTENS, PROOF_BYTES, is_local, prove

_STRANGERS_MAX: Final = 64
_STRANGER_SECONDS: Final = 10.0
_PAIRING_SECONDS: Final = 30.0
_FAREWELL_SECONDS: Final = 2.0
_CONNECTIONS_PER_PEER_MAX: Final = 16
_BACKLOG: Final = 128
_PAUSE_SECONDS: Final = 0.1
_NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

Handler = Callable[[Connection], Awaitable[None]]


async def serve(
    address: Address,
    identity: Identity,
    known: Callable[[], Mapping[str, str]],
    *,
    insecure: bool,
    on_connection: Handler,
    on_pairing: Handler,
    is_pairing_open: Callable[[], bool] = lambda: True,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listens on *address* until cancelled, and then cancels what was begun.

    Args:
        address, identity: where, and with which key and certificate.
        known: gives name and certificate (PEM) of each peer; asked for every connection. A peer
            that it does not give any more when *on_connection* would begin is not let in.
        insecure: root's own nodes may come unencrypted over the loopback (plain.py).
        on_connection: runs for each known peer, and for those nodes.
        on_pairing: runs for each stranger that wants to pair; cancelled after half a minute.
        is_pairing_open: returns True while strangers may.
        task_status: gets the address, with the port that was really taken.

    Resource handling: both handlers may use the connection until they return; it is closed then.

    Error handling: what a handler raises ends its connection, and is logged. Raises
    ListenError when nothing can listen on *address*."""
    sockets = await _listen(address)
    try:
        listening = _Listening(
            identity, known, insecure, on_connection, on_pairing, is_pairing_open
        )
        port = sockets[0].getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listening.log_limiter.run)
            for one in sockets:
                nursery.start_soon(listening.accept, trio.SocketListener(one), nursery)
            task_status.started(Address(address.host, port))
    finally:
        for one in sockets:
            one.close()


async def _listen(address: Address) -> list[trio.socket.SocketType]:
    sockets: list[trio.socket.SocketType] = []
    port = address.port
    try:
        infos = await trio.socket.getaddrinfo(
            address.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, where in infos:
            try:
                one = trio.socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno in _NO_SUCH_FAMILY and len(infos) > 1:
                    continue
                raise
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # All on one port, also where the kernel chooses it.
                await one.bind((where[0], port, *where[2:]))
                one.listen(_BACKLOG)
            except OSError as error:
                one.close()
                if error.errno in _NO_SUCH_FAMILY and len(infos) > 1:
                    continue
                raise
            sockets.append(one)
            port = one.getsockname()[1]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except (OSError, UnicodeError) as error:
        for one in sockets:
            one.close()
        raise ListenError(address, _why_not(error)) from None
    return sockets


def _why_not(error: OSError | UnicodeError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "something listens there already; choose another port, or end that"
    if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror | UnicodeError):
        return "this is no address of this machine; give one of its own, or 0.0.0.0 for all"
    return os.strerror(number).lower() if number else str(error)


class _RefusedError(Exception):
    """A stranger is not let in, for *reason*; *farewell* are the bytes that tell it so."""

    def __init__(self, reason: str, farewell: bytes = b"") -> None:
        self.farewell = farewell
        super().__init__(reason)


class _Listening:
    """The state that the accepting tasks of one server share."""

    def __init__(
        self,
        identity: Identity,
        known: Callable[[], Mapping[str, str]],
        insecure: bool,
        on_connection: Handler,
        on_pairing: Handler,
        is_pairing_open: Callable[[], bool],
    ) -> None:
        self.log_limiter = LogLimiter()
        self._admission = Admission()
        self._passes = PassCheck(identity)
        self._identity = identity
        self._known = known
        self._insecure = insecure
        self._on_connection = on_connection
        self._on_pairing = on_pairing
        self._is_pairing_open = is_pairing_open
        self._strangers: dict[trio.CancelScope, str] = {}
        """Connections of which no peer is known yet, oldest first, and their networks."""
        self._connections: Counter[str | None] = Counter()

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accepts until cancelled."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                # What is waiting keeps waiting; without a pause we would spin.
                self.log_limiter.stranger(
                    "any address", "any address", os.strerror(error.errno or 0).lower()
                )
                await trio.sleep(_PAUSE_SECONDS)
                continue
            try:
                address = remote(stream)
            except OSError:  # gone again
                stream.socket.close()
                continue
            scope = trio.CancelScope(deadline=trio.current_time() + _STRANGER_SECONDS)
            self._strangers[scope] = network_of(address.host)
            self._make_room()
            nursery.start_soon(self._handle, stream, address, scope)

    def _make_room(self) -> None:
        """Cuts a stranger off if there are too many."""
        if len(self._strangers) > _STRANGERS_MAX:
            chosen = self._admission.choose(self._strangers)
            del self._strangers[chosen]
            chosen.cancel()

    async def _handle(
        self, stream: trio.SocketStream, address: Address, scope: trio.CancelScope
    ) -> None:
        host, where = address.host, str(address)
        connection: Connection | None = None
        try:
            with scope:
                connection = await self._admit(stream, where, scope)
            if scope.cancelled_caught:
                raise _RefusedError(
                    f"did not say who it is within {_STRANGER_SECONDS:g} s"
                    if scope in self._strangers
                    else "too many others are connecting"
                )
            if connection is not None:
                self._strangers.pop(scope, None)
                await self._run(connection, host)
        except _RefusedError as refused:
            self.log_limiter.stranger(host, where, str(refused))
            await _part(stream, refused.farewell)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.log_limiter.stranger(host, where, why(error))
        except Exception as error:
            self._explain(host, where, None, error)
        finally:
            self._strangers.pop(scope, None)
            stream.socket.close()

    def _explain(self, host: str, where: str, peer: str | None, error: Exception) -> None:
        """Logs what ended a connection; our bugs, too, are no reason to end the server."""
        causes = list(_leaves(error))
        if not all(isinstance(cause, FusejournalError) for cause in causes):
            self.log_limiter.bug(peer or where, error)
        elif peer is not None:
            self.log_limiter.peer(peer, str(causes[0]))
        else:
            self.log_limiter.stranger(host, where, str(causes[0]).removeprefix(f"{where}: "))

    async def _run(self, connection: Connection, host: str) -> None:
        peer = connection.peer
        if self._connections[peer] >= _CONNECTIONS_PER_PEER_MAX:
            await connection.aclose()
            raise _RefusedError(f"has {_CONNECTIONS_PER_PEER_MAX} connections already")
        self._connections[peer] += 1
        try:
            await self._use(connection, host, self._on_connection)
        finally:
            self._connections[peer] -= 1

    async def _use(self, connection: Connection, host: str, handler: Handler) -> None:
        async with connection:
            try:
                await handler(connection)
            except* Exception as errors:
                # What comes with a cancellation, too, or it would end the server.
                self._explain(host, connection.where, connection.peer, errors)

    async def _admit(
        self, stream: trio.SocketStream, where: str, scope: trio.CancelScope
    ) -> Connection | None:
        """Returns the connection with a peer that is known; None when it was for pairing, which is
        done then. Raises _RefusedError."""
        set_options(stream)
        preamble = await receive_exactly(stream, PREAMBLE_BYTES)
        if preamble == TLS:
            return await self._admit_known(stream, where, scope)
        if preamble == PAIR:
            if not self._is_pairing_open():
                raise _RefusedError("wants to pair, and no pairing is open", NO_PAIRING)
            # It stays a stranger for its whole length, and is given a little more of it.
            scope.deadline = trio.current_time() + _PAIRING_SECONDS
            network = network_of(remote(stream).host)
            tls = await self._handshake(stream, None, network)
            await tls.send_all(READY)
            connection = Connection(tls, where, None)
            await self._use(connection, remote(stream).host, self._on_pairing)
            return None
        if preamble == OPEN:
            return await self._admit_plain(stream, where)
        if preamble == OPEN_UNPROVED:
            raise _RefusedError("came without encryption, and is of an older version", CLOSED)
        raise _RefusedError(
            f"is no fusejournal: its first bytes are {preamble!r}" if preamble else "said nothing"
        )

    async def _admit_plain(self, stream: trio.SocketStream, where: str) -> Connection:
        if not (self._insecure and is_local(stream)):
            raise _RefusedError("came without encryption", CLOSED)
        proof = await receive_exactly(stream, PROOF_BYTES)
        if not hmac.compare_digest(proof, prove(CONNECTS, stream, is_listener=True)):
            raise _RefusedError(
                "came without encryption, and did not prove to be root's, on this machine, with "
                "nothing in between",
                CLOSED,
            )
        plain = LingeringStream(stream)
        await plain.send_all(READY + prove(LISTENS, stream, is_listener=True))
        return Connection(plain, where, None)

    async def _admit_known(
        self, stream: trio.SocketStream, where: str, scope: trio.CancelScope
    ) -> Connection:
        network = network_of(remote(stream).host)
        asked, known = await name_asked(stream), self._known()
        peer = self._passes.peer_of(asked, known)
        if peer is not None:
            # Others at its address have no part in its places and tokens.
            network = self._strangers[scope] = f"peer {peer}"
            self._admission.trust(network)
        tls = await self._handshake(stream, known, network)
        fingerprint = fingerprint_of_der(peer_certificate(tls))
        self._name_of(fingerprint)
        self._admission.trust(network_of(remote(stream).host))
        await tls.send_all(READY)
        # Asked anew, because a peer can be removed at any moment. No await from here to the
        # handler's first, so that none is removed after this and before the handler knows of it.
        return Connection(tls, where, self._name_of(fingerprint), node_id_of(fingerprint))

    def _name_of(self, fingerprint: str) -> str:
        """The peer that has this certificate now. Raises _RefusedError."""
        for name, certificate in self._known().items():
            if fingerprint_of(certificate) == fingerprint:
                return name
        raise _RefusedError(f"no peer has its certificate, {fingerprint}")

    async def _handshake(
        self, stream: trio.SocketStream, known: Mapping[str, str] | None, network: str
    ) -> TlsStream:
        """Begins TLS with one of the *known*, or, where that is None, with any node, when it is
        *network*'s turn. Raises _RefusedError."""
        delay_seconds = self._admission.take(network, trio.current_time())
        if delay_seconds is None:
            raise _RefusedError("too many others are connecting")
        if delay_seconds:
            await trio.sleep(delay_seconds)
        if known is None:
            context = context_for_pairing(ssl.Purpose.CLIENT_AUTH, self._identity)
        else:
            certificates = tuple(known.values())
            context, unusable = context_for(ssl.Purpose.CLIENT_AUTH, self._identity, certificates)
            for name, certificate in known.items():
                if certificate in unusable:
                    self.log_limiter.peer(name, UNUSABLE)
        tls = open_tls(stream, context, server_side=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            if not isinstance(error.__cause__, ssl.SSLError):
                raise
            reason = why(error)
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                reason = f"no peer has its certificate ({error.__cause__.verify_message})"
            raise _RefusedError(reason, unsent(tls)) from None
        return tls


async def _part(stream: trio.SocketStream, farewell: bytes) -> None:
    """Sends the last words and closes, both within a moment."""
    with trio.move_on_after(_FAREWELL_SECONDS), suppress(trio.BrokenResourceError):
        if farewell:
            await stream.send_all(farewell)
            await LingeringStream(stream).aclose()


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in _leaves(one)]
