"""The key of an encrypted store of versions, and its text form, the recovery key.

A key is 32 random bytes, from which all others are derived (HKDF-SHA256, RFC 5869). STATE/store.key
holds it in its text form, for root alone. Text: "FJK1" and eight groups of seven characters of
base32 (RFC 4648), joined by "-": the 32 bytes, and the first three of their BLAKE3 under a context
of its own, so that a character that was mistyped is noticed. Its id, 16 hex digits, is derived from
it, tells nothing of it, and stands in the store."""

import base64
import re
import stat
from os import fstat, urandom
from pathlib import Path

from blake3 import blake3

from fusejournal.disk.files import Outlives, remove, write_atomically, write_new
from fusejournal.objects.store import StoreError

_FILE = "store.key"
_KEY_BYTES, _CHECK_BYTES = 32, 3
_PREFIX = "FJK1"
_GROUP = 7
_TEXT = re.compile(r"FJK1([A-Z2-7]{56})")
_TEXT_BYTES_MAX = 1000
_CONTEXT = "fusejournal 2026 recovery key check"


class StoreKeyError(StoreError):
    """The key of an encrypted store is missing, another one, or cannot be read."""

    exit_code = 48


class StoreKey:
    """A key. Its representation does not show it."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == _KEY_BYTES
        self._secret = secret
        self.id = self.derive(b"fusejournal key id 1", 8).hex()

    @classmethod
    def make(cls) -> "StoreKey":
        """Returns a new key."""
        return cls(urandom(_KEY_BYTES))

    def derive(self, purpose: bytes, length: int, salt: bytes | None = None) -> bytes:
        """Returns *length* bytes for one *purpose*."""
        # Only here, and in place.py: most stores have no key, and should not wait for the library.
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), length, salt, purpose).derive(self._secret)

    @property
    def text(self) -> str:
        """The recovery key."""
        body = base64.b32encode(self._secret + _check(self._secret)).decode()
        groups = [body[at : at + _GROUP] for at in range(0, len(body), _GROUP)]
        return "-".join([_PREFIX, *groups])


def _check(secret: bytes) -> bytes:
    return blake3(secret, derive_key_context=_CONTEXT).digest()[:_CHECK_BYTES]


def parse_key(where: str, text: str) -> StoreKey:
    """Returns the key with the recovery key *text*, in which case, spaces and dashes do not matter.
    Raises StoreKeyError, which names *where* it was read, and does not repeat it."""
    match = _TEXT.fullmatch(re.sub(r"[\s-]", "", text).upper())
    raw = base64.b32decode(match[1]) if match is not None else b""
    secret = raw[:_KEY_BYTES]
    if not raw or _check(secret) != raw[_KEY_BYTES:]:
        raise StoreKeyError(
            where, "is no recovery key (FJK1- and eight groups of seven characters): is it whole?"
        )
    return StoreKey(secret)


def read_key_file(path: Path, *, private: bool = True) -> StoreKey:
    """Returns the key in the file *path*; *private*: refuses one that others can read. Raises
    StoreKeyError, OSError."""
    with open(path, "rb") as file:
        found = fstat(file.fileno())
        if private and stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
            raise StoreKeyError(str(path), "can be read by others: chmod 600")
        return parse_key(str(path), file.read(_TEXT_BYTES_MAX).decode("ascii", "replace"))


def write_key_file(path: Path, key: StoreKey) -> None:
    """Puts the recovery key into the new file *path*, for its owner alone. Raises StoreKeyError if
    there is one; OSError."""
    try:
        write_new("version.key.export", path, f"{key.text}\n".encode())
    except FileExistsError:
        raise StoreKeyError(str(path), "is there already: name a new file") from None


def read_key(state_dir: Path) -> StoreKey | None:
    """Returns the key that the volume with this state directory has, or None. Raises
    StoreKeyError, OSError."""
    try:
        return read_key_file(state_dir / _FILE)
    except FileNotFoundError:
        return None


def write_key(state_dir: Path, key: StoreKey) -> None:
    """Writes down the volume's key, durably. Raises OSError."""
    content = f"{key.text}\n".encode()
    write_atomically("version.key", state_dir / _FILE, content, Outlives.MACHINE)


def remove_key(state_dir: Path) -> None:
    """Removes the volume's key, with which nothing was encrypted. Raises OSError."""
    remove("version.key.remove", state_dir / _FILE)
