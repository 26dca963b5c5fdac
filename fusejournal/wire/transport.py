"""Connects to peers, over TLS 1.3 or, on one machine, without.

:func:`connect` is one way to a :class:`Connection`, :func:`serve` (listener.py) the other;
connection.py has the bytes that one begins with. Used from the event loop's thread."""

import hmac
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from fusejournal.address import Address as Address
from fusejournal.address import parse_address as parse_address
from fusejournal.errors import (
    FusejournalError,
    PairingError,
    PeerLostError,
    PeerMistakenError,
    PeerRefusedError,
    WireError,
)
from fusejournal.wire.connection import (
    CLOSED,
    NONE_IS_OPEN,
    OPEN,
    PAIR,
    PREAMBLE_BYTES,
    READY,
    TLS,
    LingeringStream,
    TlsStream,
    is_cut,
    open_tls,
    peer_certificate,
    receive_exactly,
    set_options,
    why,
)
from fusejournal.wire.connection import Connection as Connection
from fusejournal.wire.contexts import context_for, context_for_pairing
from fusejournal.wire.identity import (
    UNUSABLE,
    Identity,
    fingerprint_of,
    fingerprint_of_der,
    node_id_of,
)
from fusejournal.wire.listener import serve as serve
from fusejournal.wire.passes import make_pass
from fusejournal.wire.plain import CONNECTS, LISTENS, PROOF_BYTES, is_local, prove

_LOOK_SECONDS: Final = 5.0
_UNKNOWN: Final = ("UNKNOWN_CA", "CERTIFICATE", "ACCESS_DENIED")
"""Parts of the names of alerts by which a peer says that it does not know us."""


async def connect(
    address: Address,
    identity: Identity,
    certificate: str | None,
    *,
    insecure: bool,
    timeout_seconds: float,
    open_seconds: float | None = None,
) -> Connection:
    """Returns a connection to a peer. Its ``peer`` is None: the caller knows whom it called.
    Cancelling leaves nothing behind.

    Args:
        address, certificate: of the peer. Without a certificate (PEM), and with *insecure*, the
            connection is not encrypted, and both ends are root's on one loopback.
        identity: of this node.
        insecure: it may be unencrypted.
        timeout_seconds: the time that all may take.
        open_seconds: the time until the machine there answers, because one that is off never does;
            None: as long.

    Raises PeerLostError (refused, not to be reached, too slow, cut), PeerMistakenError (another
    certificate), PeerRefusedError (does not know us, or takes nothing unencrypted), WireError (no
    fusejournal), each one line that names the address."""
    where = str(address)
    if certificate is None and not insecure:
        raise PeerRefusedError(where, "its certificate is not known: pair with it first")
    async with _within(where, timeout_seconds):
        async with _within(where, timeout_seconds if open_seconds is None else open_seconds):
            stream = await _open(address)
        try:
            if certificate is None:
                return await _begin_plain(stream, where)
            return await _begin_known(stream, address, identity, certificate)
        except BaseException:
            stream.socket.close()
            raise
    raise AssertionError("unreachable")


async def connect_for_pairing(
    address: Address, identity: Identity, *, timeout_seconds: float
) -> Connection:
    """Returns a connection to the node that listens at *address*, to pair with it (pairing.py):
    neither end has proved anything yet. Cancelling leaves nothing behind. Raises as
    :func:`connect`."""
    where = str(address)
    async with _within(where, timeout_seconds):
        stream = await _open(address)
        try:
            tls = await _handshake(stream, where, PAIR, identity, None)
            await _await_ready(tls, where, identity)
        except BaseException:
            stream.socket.close()
            raise
        return Connection(tls, where, None)
    raise AssertionError("unreachable")


@asynccontextmanager
async def _within(where: str, seconds: float) -> AsyncIterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise PeerLostError(where, f"no answer within {seconds:g} s") from None


async def _open(address: Address) -> trio.SocketStream:
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, UnicodeError) as error:
        raise PeerLostError(str(address), _why_not(error)) from None
    try:
        set_options(stream)
    except OSError as error:
        stream.socket.close()
        raise PeerLostError(str(address), _why_not(error)) from None
    return stream


def _why_not(error: BaseException) -> str:
    """Returns why no connection was made; trio wraps up the error of each address of the host."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return "no such host"
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return _why_not(error.__cause__) if error.__cause__ is not None else str(error)


async def _begin_plain(stream: trio.SocketStream, where: str) -> Connection:
    try:
        local = is_local(stream)
    except OSError as error:
        raise PeerLostError(where, _why_not(error)) from None
    if not local:
        raise PeerRefusedError(
            where, "without encryption both ends must be on the loopback: pair with it first"
        )
    plain = LingeringStream(stream)
    try:
        await plain.send_all(OPEN + prove(CONNECTS, stream, is_listener=False))
        answer = await receive_exactly(plain, PREAMBLE_BYTES)
        proof = await receive_exactly(plain, PROOF_BYTES) if answer == READY else b""
        expected = prove(LISTENS, stream, is_listener=False)
    except OSError as error:
        raise PeerLostError(where, _why_not(error)) from None
    except trio.BrokenResourceError as error:
        raise PeerLostError(where, why(error)) from None
    if answer == CLOSED:
        raise PeerRefusedError(
            where, "takes nothing unencrypted: start it with --insecure, or pair with it"
        )
    if answer != READY:
        raise _not_ours(where, answer)
    if not hmac.compare_digest(proof, expected):
        raise PeerRefusedError(
            where,
            "without encryption both nodes must be root's, on one machine, with nothing in "
            "between: pair with it first",
        )
    return Connection(plain, where, None)


async def _begin_known(
    stream: trio.SocketStream, address: Address, identity: Identity, certificate: str
) -> Connection:
    where, expected = str(address), fingerprint_of(certificate)
    try:
        tls = await _handshake(stream, where, TLS, identity, certificate)
    except ssl.SSLCertVerificationError:
        found = await _look(address, identity)
        raise PeerMistakenError(where, expected, found) from None
    found = fingerprint_of_der(peer_certificate(tls))
    if found != expected:
        raise PeerMistakenError(where, expected, found)
    await _await_ready(tls, where, identity)
    return Connection(tls, where, None, node_id_of(found))


async def _handshake(
    stream: trio.SocketStream,
    where: str,
    preamble: bytes,
    identity: Identity,
    certificate: str | None,
) -> TlsStream:
    """Begins TLS with the node that has *certificate*, or, where that is None, with any. Raises
    SSLCertVerificationError for another one."""
    if certificate is None:
        context, asked = context_for_pairing(ssl.Purpose.SERVER_AUTH, identity), None
    else:
        context, unusable = context_for(ssl.Purpose.SERVER_AUTH, identity, (certificate,))
        if unusable:
            raise PeerRefusedError(where, UNUSABLE)
        asked = make_pass(identity, certificate)
    tls = open_tls(stream, context, False, asked)
    try:
        await stream.send_all(preamble)
        await tls.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise cause from None
        code = getattr(cause, "reason", None) or ""
        if preamble == PAIR and "ACCESS_DENIED" in code:
            raise PairingError(f"{where}: pairing refused: {NONE_IS_OPEN}") from None
        if isinstance(cause, ssl.SSLError) and not is_cut(cause) and "ALERT" not in code:
            raise _not_ours(where, why(error)) from None
        raise PeerLostError(where, f"in the handshake: {why(error)}") from None
    return tls


async def _await_ready(tls: TlsStream, where: str, identity: Identity) -> None:
    try:
        answer = await receive_exactly(tls, PREAMBLE_BYTES)
    except trio.BrokenResourceError as error:
        alert = getattr(error.__cause__, "reason", None) or ""
        if "ALERT" in alert and any(word in alert for word in _UNKNOWN):
            raise PeerRefusedError(
                where, f"does not know this node, {identity.fingerprint}: pair the two"
            ) from None
        raise PeerLostError(where, f"after the handshake: {why(error)}") from None
    if answer != READY:
        raise _not_ours(where, answer)


async def _look(address: Address, identity: Identity) -> str:
    """Returns the fingerprint of the node at *address*, to be named in an error; empty if it cannot
    be had. Python hides the certificate that failed, so it is asked for once more."""
    found = ""
    with trio.move_on_after(_LOOK_SECONDS), suppress(FusejournalError):
        stream = await _open(address)
        try:
            tls = await _handshake(stream, str(address), PAIR, identity, None)
            found = fingerprint_of_der(peer_certificate(tls))
            await tls.aclose()
        finally:
            stream.socket.close()
    return found


def _not_ours(where: str, said: bytes | str) -> WireError:
    if not said:
        return PeerLostError(where, "the connection was cut")
    return WireError(f"{where}: is no fusejournal: {said!r:.80}")
