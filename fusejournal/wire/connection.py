"""One connection to a peer: messages over a trio stream, encrypted or not; and TLS as nodes use it.

A connection begins with 8 bytes in plain from the connector, which choose what follows; then, on
what they chose, with 8 bytes from the listener:

==============  ==================================================================================
``FJTLS1\\r\\n``   TLS 1.3; each shows its certificate, and the other has to know it
``FJPAIR1\\n``    TLS 1.3 with certificates that are not known yet, for pairing.py alone
``FJOPEN2\\n``    nothing: both ends on this machine's loopback, and both allow it; each proves to
                be root (plain.py)
``FJREADY\\n``    the listener's answer: go on. In TLS 1.3 the connector ends its handshake
                before its certificate is looked at; only this says that it was taken
``FJCLOSED``    the listener's answer to ``FJOPEN2``, in plain: not here
==============  ==================================================================================

A connection has one receiver at a time and any number of senders. One whose receive or send failed,
or was cancelled in a send, is of no more use and has to be closed.

Source: RFC 8446 (section 6.1: an end without close_notify is a cut); tcp(7)."""

import errno
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Final

import trio

from fusejournal.address import Address
from fusejournal.errors import FusejournalError, PeerLostError, WireError
from fusejournal.wire.frames import Decoder, Hello, Message, Welcome, encode_parts
from fusejournal.wire.identity import Identity

PREAMBLE_BYTES: Final = 8
TLS: Final = b"FJTLS1\r\n"
PAIR: Final = b"FJPAIR1\n"
OPEN: Final = b"FJOPEN2\n"
OPEN_UNPROVED: Final = b"FJOPEN1\n"
"""The preamble of an older version, which is refused."""
READY: Final = b"FJREADY\n"
CLOSED: Final = b"FJCLOSED"
assert {len(one) for one in (TLS, PAIR, OPEN, OPEN_UNPROVED, READY, CLOSED)} == {PREAMBLE_BYTES}
NONE_IS_OPEN: Final = (
    "no pairing is open here: 'fusejournal pair VOLUME' there ('fusejournal agent pair' for a "
    "console) shows a new code, and has to be left running"
)
"""A pairing's refusal, in words."""
NO_PAIRING: Final = b"\x15\x03\x03\x00\x02\x02\x31"
"""The listener's answer to ``PAIR`` while none is open: a fatal alert, "access denied", as TLS ends
a handshake that it has not begun (RFC 8446, section 6)."""

_PIECE_BYTES: Final = 256 << 10
"""The most that is encrypted at once: the loop serves others in between, and no more is copied."""
_RECEIVE_BYTES: Final = 64 << 10
_LINGER_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 2.0
_LOST_SECONDS: Final = 30
"""The time that sent bytes may go unanswered by the other kernel. It may not take up anything new
for as long either (seen: Linux counts a full receive window, too), so a receiver keeps reading."""
_KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 4),
)


class LingeringStream(trio.abc.Stream):
    """A TCP stream whose orderly end lets the other read what was sent: a socket closed with
    something unread in it would cut that off. Cancelling does what it does on the stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends, as the stream does. Cancelled, a part may be sent."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Waits, as the stream does. Cancelling is harmless."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receives, as the stream does. Cancelling loses nothing."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Ends the sending, waits a moment for the other end to have read everything, and closes.
        Cancelling closes at once."""
        try:
            with trio.move_on_after(_LINGER_SECONDS):
                await self._stream.send_eof()
                while await self._stream.receive_some(_RECEIVE_BYTES):
                    pass
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._stream.socket.close()


class Connection:
    """Messages to and from one peer, over *stream*, which it closes."""

    def __init__(
        self, stream: trio.abc.Stream, where: str, peer: str | None, node_id: int = 0
    ) -> None:
        self.peer = peer
        """The name of the known peer; None without certificates."""
        self.node_id = node_id
        """The node that the other end is by its certificate; 0 without. It can greet as no
        other."""
        self.where = where
        """The other end: host and port."""
        self.bytes_sent = 0
        """Bytes of messages, before encryption."""
        self.bytes_received = 0
        self._stream = stream
        self._decoder = Decoder()
        self._decoded: Iterator[Message] = iter(())
        self._sending = trio.Lock()
        self._is_send_broken = False
        self._blocked_seconds = 0.0
        self._blocked_since: float | None = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def send_blocked_seconds(self) -> float:
        """The time that senders have waited for the link, this moment included."""
        since = self._blocked_since
        return self._blocked_seconds + (trio.current_time() - since if since is not None else 0.0)

    def expect_batches(self) -> None:
        """Lets batches in from now on. Until this is called, nothing large is taken from any
        peer."""
        self._decoder.expect_batches()

    async def receive(self) -> Message | None:
        """Returns the next message; None when the other end has ended the connection in order. One
        task at a time; cancelling loses nothing. Raises WireError for bytes that are no message,
        PeerLostError when the connection broke."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                message = next(self._decoded, None)
            except WireError as error:
                raise WireError(f"{self.where}: {error}") from None
            if message is not None:
                self._check_node(message)
                return message
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise PeerLostError(self.where, why(error)) from None
            if not data:
                if self._decoder.is_between:
                    return None
                raise PeerLostError(self.where, "ended the connection in the middle of a message")
            self.bytes_received += len(data)
            self._decoded = self._decoder.feed(data)

    def _check_node(self, message: Message) -> None:
        """Raises WireError for a greeting of another node than the certificate is of: a vote, a
        position, what it holds would count as that node's."""
        if not isinstance(message, Hello | Welcome) or not self.node_id:
            return
        if message.node_id not in (0, self.node_id):  # (0: of a version that does not say it)
            raise WireError(
                f"{self.where}: {message.node} says that it is node {message.node_id:016x}, and "
                f"its certificate is that of {self.node_id:016x}: it is broken, or lies"
            )

    async def send(self, *messages: Message) -> None:
        """Sends *messages*, one right after the other. Any task may call it. Returns when they are
        in the kernel's hands; cancelling half-way leaves the connection of no use. Raises
        PeerLostError."""
        async with self._sending:
            if self._is_send_broken:
                raise PeerLostError(self.where, "an earlier message could not be sent")
            self._is_send_broken = True
            for piece in _pieces(messages):
                self._blocked_since = trio.current_time()
                try:
                    await self._stream.send_all(piece)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise PeerLostError(self.where, why(error)) from None
                finally:
                    self._blocked_seconds += trio.current_time() - self._blocked_since
                    self._blocked_since = None
                self.bytes_sent += len(piece)
            self._is_send_broken = False

    async def aclose(self) -> None:
        """Ends the connection: in order where the other end plays its part within a moment, by
        force otherwise or when cancelled."""
        with trio.move_on_after(_CLOSE_SECONDS):
            await self._stream.aclose()


def _pieces(messages: Iterable[Message]) -> Iterator[bytes | memoryview]:
    """Gives the bytes of *messages*: small ones together, large ones in slices, uncopied."""
    small: list[bytes] = []
    small_bytes = 0
    for message in messages:
        for part in encode_parts(message):
            if len(part) <= _PIECE_BYTES // 4:
                small.append(part)
                small_bytes += len(part)
                if small_bytes < _PIECE_BYTES:
                    continue
            if small:
                yield b"".join(small)
                small, small_bytes = [], 0
            if len(part) > _PIECE_BYTES // 4:
                with memoryview(part) as view:
                    for start in range(0, len(view), _PIECE_BYTES):
                        yield view[start : start + _PIECE_BYTES]
    if small:
        yield b"".join(small)


async def receive_exactly(stream: trio.abc.Stream, length: int) -> bytes:
    """Returns the next *length* bytes, or fewer where the stream ends. Cancelling loses those that
    came. Raises trio.BrokenResourceError."""
    data = b""
    while len(data) < length:
        part = await stream.receive_some(length - len(data))
        if not part:
            break
        data += part
    return data


def is_cut(error: ssl.SSLError) -> bool:
    """Returns True if *error* is that the connection has ended, and nothing was said of it."""
    is_end = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return is_end or "EOF" in (error.reason or "")


def why(error: BaseException) -> str:
    """Returns why a connection ended, in words."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(error, trio.ClosedResourceError):
        return "the connection was closed on this side"
    if isinstance(cause, ssl.SSLError):
        if is_cut(cause):
            return "the connection was cut"
        return (cause.reason or str(cause)).lower().replace("_", " ")
    if isinstance(cause, OSError):
        if cause.errno in (errno.ECONNRESET, errno.EPIPE):
            return "the connection was cut"
        return os.strerror(cause.errno).lower() if cause.errno else str(cause)
    return "the connection was cut"


# -- sockets ---------------------------------------------------------------------------------------


def set_options(stream: trio.SocketStream) -> None:
    """Has *stream* send at once, and notice a peer that is gone. Raises OSError for a socket that
    is dead."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        stream.setsockopt(socket.IPPROTO_TCP, option, value)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST_SECONDS * 1000)


def remote(stream: trio.SocketStream) -> Address:
    """Returns the address of the other end. Raises OSError when it is gone."""
    name = stream.socket.getpeername()
    return Address(str(unmapped_ip(name[0])), name[1])


def unmapped_ip(host: str) -> IPv4Address | IPv6Address:
    """Returns the IP address *host*, as one of IPv4 where it is one that is mapped to IPv6."""
    ip = ip_address(host)
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


# -- TLS -------------------------------------------------------------------------------------------


def tls_context(purpose: ssl.Purpose, identity: Identity, *, is_verified: bool) -> ssl.SSLContext:
    """Makes a TLS 1.3 context of the connector (``SERVER_AUTH``) or the listener
    (``CLIENT_AUTH``). *is_verified*: the other end has to show a certificate that
    :func:`fusejournal.wire.identity.trust` has added, each its own anchor; otherwise it may be any
    node, for pairing.

    No session is ever resumed: each connection proves anew who it is. Raises FusejournalError when
    the identity's files are gone."""
    is_listener = purpose is ssl.Purpose.CLIENT_AUTH
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_listener else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # peers are known by certificate, wherever they are
    if is_listener:
        # A ticket would be written to a peer that may only ever send.
        context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED if is_verified else ssl.CERT_NONE
    if is_verified:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if is_verified or is_listener:
        try:
            context.load_cert_chain(identity.certificate_path, identity.key_path)
        except OSError as error:
            where = identity.certificate_path.parent
            raise FusejournalError(f"{where}: this node's key cannot be read: {error}") from None
    return context


TlsStream = trio.SSLStream[LingeringStream]


def open_tls(
    stream: trio.SocketStream, context: ssl.SSLContext, server_side: bool, asked: str | None = None
) -> TlsStream:
    """Returns TLS over *stream*, not begun yet. *asked*: the name that the connector asks for."""
    return trio.SSLStream(
        LingeringStream(stream), context, server_hostname=asked, server_side=server_side
    )


def peer_certificate(stream: TlsStream) -> bytes:
    """Returns the other end's certificate (DER) after a handshake; empty if it showed none."""
    return stream.getpeercert(binary_form=True) or b""


def unsent(stream: TlsStream) -> bytes:
    """Returns the alert that reports to the other end why its handshake failed: trio leaves it
    unsent."""
    return stream._outgoing.read()
