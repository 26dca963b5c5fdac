"""Passes: what a peer shows in its first bytes, so that strangers at its address do not use up the
handshakes that it needs.

The two nodes of a pair have a secret without another word, because each knows the other's
certificate and so its key: that of Diffie and Hellman, by P-256. The connector asks in its
ClientHello for a server of the name

::

    CONNECTOR.TIME.PROOF.fusejournal

with the beginning of its fingerprint, its clock in nanoseconds, and an HMAC-SHA256 of that and of
both fingerprints, keyed with the secret. Nodes that know of no passes, of release 0.1.0, ignore the
name. A pass is good once, because the next one has to be later; a node whose clock was put back is
a stranger until it has caught up. It lets no one in: it only decides whose turn a handshake is.

What is read here may be anybody's bytes, and costs no more than a hash. Used from the event loop's
thread. Source: RFC 8446, sections 4.1.2 and 5.1, and RFC 6066, section 3 (the ClientHello and the
name in it); RFC 5869 (the secret as a key)."""

import hmac
import re
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fusejournal.wire.identity import Identity, fingerprint_of

_ABOUT: Final = b"fusejournal pass 1"
_RECORD_HEADER: Final = struct.Struct(">BHH")
"""Type, version, length."""
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0
_CLIENT_HELLO_BYTES_MAX: Final = 16 << 10
_WAIT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.02
_SHORT: Final = 32
"""Hexadecimal digits of a fingerprint, and of a proof."""
_NAME: Final = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{1,16})\.([0-9a-f]{32})\.fusejournal")


def make_pass(identity: Identity, certificate: str) -> str | None:
    """Returns the name to ask the peer with *certificate* (PEM) for; None where one of the two keys
    is of another kind."""
    secret = _secret(identity.key_path, certificate)
    if secret is None:
        return None
    now = f"{time.time_ns():x}"
    mine, theirs = _short(identity.fingerprint), _short(fingerprint_of(certificate))
    return f"{mine}.{now}.{_prove(secret, mine, theirs, now)}.fusejournal"


class PassCheck:
    """Checks the passes that *identity* is shown."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._mine = _short(identity.fingerprint)
        self._last_ns: dict[str, int] = {}
        """The time of the last pass of each peer that has shown one."""

    def peer_of(self, name: str, known: Mapping[str, str]) -> str | None:
        """Returns the peer, of those *known* (name, certificate), whose pass *name* is; None where
        it is none, or not a new one."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        theirs, at, proof = match.groups()
        for peer, certificate in known.items():
            if _short(fingerprint_of(certificate)) != theirs:
                continue
            secret = _secret(self._identity.key_path, certificate)
            if secret is None or not hmac.compare_digest(
                proof, _prove(secret, theirs, self._mine, at)
            ):
                return None
            if int(at, 16) <= self._last_ns.get(theirs, 0):
                return None
            self._last_ns[theirs] = int(at, 16)
            return peer
        return None


async def name_asked(stream: trio.SocketStream) -> str:
    """Returns the server's name in the ClientHello that comes next on *stream*, from which nothing
    is taken; empty where there is none, or not within a second. Cancelling leaves all as it was.
    Raises OSError."""
    with trio.move_on_after(_WAIT_SECONDS):
        while True:
            hello = await stream.socket.recv(_CLIENT_HELLO_BYTES_MAX, socket.MSG_PEEK)
            name = name_in(hello)
            if name is not None or not hello or len(hello) == _CLIENT_HELLO_BYTES_MAX:
                return name or ""
            # The rest comes later, and the kernel does not tell when.
            await trio.sleep(_PAUSE_SECONDS)
    return ""


def name_in(hello: bytes) -> str | None:
    """Returns the server's name in *hello*, the beginning of a connection; None while it may be a
    ClientHello that is not whole, empty for anything else. (One in several records has none.)"""
    if len(hello) < _RECORD_HEADER.size:
        return None
    kind, _, length = _RECORD_HEADER.unpack_from(hello)
    if kind != _HANDSHAKE:
        return ""
    if len(hello) < _RECORD_HEADER.size + length:
        return None
    try:
        fields = _Fields(hello[_RECORD_HEADER.size :][:length])
        kind = fields.number(1)
        fields = _Fields(fields.vector(3))
        if kind != _CLIENT_HELLO:
            return ""
        fields.take(2 + 32)  # version, random
        for length_bytes in (1, 2, 1):  # session, cipher suites, compression methods
            fields.vector(length_bytes)
        fields = _Fields(fields.vector(2))
        while True:
            kind, extension = fields.number(2), _Fields(fields.vector(2))
            if kind == _SERVER_NAME:
                names = _Fields(extension.vector(2))
                names.take(1)  # its type: there is but one
                return names.vector(2).decode("ascii")
    except ValueError:
        return ""


class _Fields:
    """Takes the fields of *content*, one after the other. All methods raise ValueError past its
    end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next *count* bytes."""
        taken = self._content[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("too short")
        self._at += count
        return taken

    def number(self, count: int) -> int:
        """The number in the next *count* bytes."""
        return int.from_bytes(self.take(count), "big")

    def vector(self, length_bytes: int) -> bytes:
        """The bytes behind their length, which is in the next *length_bytes*."""
        return self.take(self.number(length_bytes))


def _short(fingerprint: str) -> str:
    return fingerprint.partition(":")[2][:_SHORT]


def _prove(secret: bytes, connector: str, listener: str, at: str) -> str:
    return hmac.digest(secret, f"{connector} {listener} {at}".encode(), "sha256").hex()[:_SHORT]


@lru_cache(1024)
def _secret(key_path: Path, certificate: str) -> bytes | None:
    with suppress(OSError, ValueError, TypeError):
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        theirs = x509.load_pem_x509_certificate(certificate.encode()).public_key()
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
            theirs, ec.EllipticCurvePublicKey
        ):
            shared = key.exchange(ec.ECDH(), theirs)
            return HKDF(hashes.SHA256(), 32, None, _ABOUT).derive(shared)
    return None
