"""Connections without TLS: for two nodes of one machine, which root has told to do without.

The ends prove to each other that they run as root of this machine, with no relay in between. The
connector sends ``OPEN`` and its proof, and gets ``READY`` and the listener's. A proof is
HMAC-SHA256 over its role and both ends' addresses, as its maker sees them, keyed with what only
root can read in ``/run/fusejournal/local.key``. So

- another user, who may connect to the port or listen on it, can make no proof;
- one that relays has other addresses towards each end, and the proofs do not fit;
- a tunnel (``ssh -L``) has other addresses, too, and another machine another key.

A proof is of no use later, because only a process that holds both ends' ports could use it again.

Blocks only on ``/run``, which is memory. Source: RFC 2104."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from fusejournal.disk import calls
from fusejournal.disk.boot import run_directory
from fusejournal.errors import FusejournalError
from fusejournal.wire.connection import unmapped_ip

PROOF_BYTES: Final = 32
CONNECTS: Final = b"fusejournal plain connects "
LISTENS: Final = b"fusejournal plain listens "
_KEY_BYTES: Final = 32


def prove(role: bytes, stream: trio.SocketStream, *, is_listener: bool) -> bytes:
    """Returns the proof of *role*, made or expected at this end of *stream*. Raises
    FusejournalError where the key cannot be had, OSError when the other end is gone."""
    own, other = stream.socket.getsockname(), stream.socket.getpeername()
    connects, listens = (other, own) if is_listener else (own, other)
    return proof_of_ends(_local_key(), role, connects, listens)


def proof_of_ends(
    key: bytes, role: bytes, connects: Sequence[Any], listens: Sequence[Any]
) -> bytes:
    """Returns the proof of *role* with *key*, for the connector's address and the listener's (host,
    port, and whatever comes behind)."""
    ends = " ".join(f"{unmapped_ip(end[0])} {end[1]}" for end in (connects, listens))
    return hmac.new(key, role + ends.encode(), hashlib.sha256).digest()


def is_local(stream: trio.SocketStream) -> bool:
    """Returns True if both ends have loopback addresses. Raises OSError when the other is gone."""
    ends = (stream.socket.getsockname(), stream.socket.getpeername())
    return all(unmapped_ip(end[0]).is_loopback for end in ends)


def _local_key() -> bytes:
    directory = run_directory()
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            held = os.fstat(fd)
            if held.st_uid != os.geteuid() or held.st_mode & 0o077:
                raise FusejournalError(f"{directory}: not a directory that is root's alone")
            key = _read_key(fd) or _make_key(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise FusejournalError(f"{directory}/local.key: {error.strerror}") from None
    if not key:
        raise FusejournalError(f"{directory}/local.key: not a key; delete it")
    return key


def _read_key(directory_fd: int) -> bytes:
    """The key; empty where there is none, or half of one."""
    try:
        fd = os.open("local.key", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return b""
    try:
        key = os.read(fd, _KEY_BYTES + 1)
        return key if len(key) == _KEY_BYTES else b""
    finally:
        os.close(fd)


def _make_key(directory_fd: int) -> bytes:
    name = f"local.key.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory_fd)
    try:
        calls.write_all("local_key.write", fd, secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):  # another node was first
            os.link(name, "local.key", src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory_fd)
    return _read_key(directory_fd)
