"""An encrypted store over another one: names and contents of objects are sealed, and which objects
belong together, how many there are, how large and when made is still to be seen. What is read back
is what was put under this very name of this store, or an error; that an object was taken away, or
an older state of the whole store brought back, no key can tell.

Ids of blocks and root hashes are those of plain contents, the same on every node; they stand in
sealed objects only, and no name beneath tells of contents.

*Name*: the part behind "/" is sealed with AES-256-SIV (RFC 5297), which is the same each time, with
the part before it as associated data, and written in base32. *Object*:

====== ==============================================================================
bytes  field
====== ==============================================================================
8      magic "FJSEAL1" and a zero
32     salt, random
...    segments of 16,384 plain bytes, each with its tag (16 bytes); the last is shorter, and may
       have no bytes but its tag
====== ==============================================================================

A segment is sealed with AES-256-GCM. The key is derived from the store's key, its id and the salt,
so that each object has its own, and another one if it is made again; the nonce is the segment's
number (u64) and 1 in the last one, else 0 (u32), little-endian; the name is associated data. So no
segment can be moved, left out or cut off.

Source: Hoang, Reyhanitabar, Rogaway, Vizár: Online authenticated-encryption and its
nonce-reuse misuse-resistance (STREAM), 2015."""

import base64
import binascii
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from os import urandom

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from fusejournal.objects.store import ObjectStore, check_name
from fusejournal.versions.keys import StoreKey
from fusejournal.versions.packs import StoreDamagedError

_MAGIC = b"FJSEAL1\0"
_SALT_BYTES = 32
_HEAD_BYTES = len(_MAGIC) + _SALT_BYTES
_PLAIN_BYTES, _TAG_BYTES = 16_384, 16
_SEALED_BYTES = _PLAIN_BYTES + _TAG_BYTES
_NONCE = struct.Struct("<QI")
_CIPHERS_MAX = 4096
"""Objects whose derived keys are kept at hand."""
assert _HEAD_BYTES == 40
assert _NONCE.size == 12


class SealedStore:
    """The encrypted store with id *store_id* in *beneath*, under *key*. May be used by several
    threads. Raises what *beneath* does, and StoreDamagedError."""

    def __init__(self, beneath: ObjectStore, key: StoreKey, store_id: str) -> None:
        self.where = beneath.where
        self.uploads = beneath.uploads
        self.traffic = beneath.traffic
        self._beneath = beneath
        self._key = key
        self._purpose = b"fusejournal object 1 " + store_id.encode()
        self._names = AESSIV(key.derive(b"fusejournal names 1 " + store_id.encode(), 64))
        self._lock = threading.Lock()
        self._ciphers: OrderedDict[str, AESGCM] = OrderedDict()

    def waiting(self) -> None:
        """Raises what is to end a wait."""
        self._beneath.waiting()

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Implements ObjectStore.put_new."""
        sealed_name = self._seal_name(name)
        salt = urandom(_SALT_BYTES)
        self._beneath.put_new(sealed_name, self._seal(name, salt, memoryview(data)))

    def get(self, name: str) -> bytes:
        """Implements ObjectStore.get."""
        sealed = memoryview(self._beneath.get(self._seal_name(name)))
        cipher = self._cipher_of(name, bytes(sealed[:_HEAD_BYTES]))
        plain, has_end = self._open(name, cipher, sealed[_HEAD_BYTES:], 0)
        if not has_end:
            raise self._damaged(name, "is cut off")
        return plain

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Implements ObjectStore.get_range."""
        if length <= 0:
            return b""
        first = start // _PLAIN_BYTES
        count = (start + length - 1) // _PLAIN_BYTES - first + 1
        cipher, sealed = self._read_segments(name, first, count)
        try:
            plain, has_end = self._open(name, cipher, sealed, first)
        except StoreDamagedError:
            # It was made again since its key was last derived.
            with self._lock:
                if self._ciphers.pop(name, None) is None:
                    raise
            cipher, sealed = self._read_segments(name, first, count)
            plain, has_end = self._open(name, cipher, sealed, first)
        offset = start - first * _PLAIN_BYTES
        found = plain[offset : offset + length]
        if len(found) < length and not has_end and not self._ends_before(name, first):
            raise self._damaged(name, "is cut off")
        return found

    def _read_segments(self, name: str, first: int, count: int) -> tuple[AESGCM, memoryview]:
        """Returns what opens the object *name*, and *count* of its segments from *first* on."""
        sealed_name = self._seal_name(name)
        with self._lock:
            cipher = self._ciphers.get(name)
        if cipher is None and not first:
            whole = self._beneath.get_range(sealed_name, 0, _HEAD_BYTES + count * _SEALED_BYTES)
            cipher = self._cipher_of(name, whole[:_HEAD_BYTES])
            return self._keep(name, cipher), memoryview(whole)[_HEAD_BYTES:]
        if cipher is None:
            head = self._beneath.get_range(sealed_name, 0, _HEAD_BYTES)
            cipher = self._keep(name, self._cipher_of(name, head))
        start = _HEAD_BYTES + first * _SEALED_BYTES
        return cipher, memoryview(
            self._beneath.get_range(sealed_name, start, count * _SEALED_BYTES)
        )

    def _ends_before(self, name: str, segment: int) -> bool:
        """Returns True if the object, sealed as a whole, ends before *segment*."""
        return len(self.get(name)) <= segment * _PLAIN_BYTES

    def names(self, prefix: str) -> Iterator[str]:
        """Implements ObjectStore.names."""
        names = [self._open_name(prefix, name) for name in self._beneath.names(prefix)]
        yield from sorted(names)

    def remove(self, name: str) -> None:
        """Implements ObjectStore.remove."""
        self._beneath.remove(self._seal_name(name))
        with self._lock:
            self._ciphers.pop(name, None)

    # -- names -------------------------------------------------------------------------------------

    def _seal_name(self, name: str) -> str:
        before, slash, rest = check_name(name).rpartition("/")
        sealed = self._names.encrypt(rest.encode(), [before.encode()])
        return before + slash + base64.b32encode(sealed).decode().rstrip("=").lower()

    def _open_name(self, prefix: str, name: str) -> str:
        text = name.removeprefix(prefix).upper()
        try:
            sealed = base64.b32decode(text + "=" * (-len(text) % 8))
            rest = self._names.decrypt(sealed, [prefix.removesuffix("/").encode()])
            return check_name(prefix + rest.decode())
        except (InvalidTag, binascii.Error, ValueError):
            raise StoreDamagedError(f"{self.where}/{name}", "is no object of this store") from None

    # -- contents ----------------------------------------------------------------------------------

    def _cipher_of(self, name: str, head: bytes) -> AESGCM:
        """Returns what opens the object that begins with *head*."""
        if len(head) != _HEAD_BYTES or not head.startswith(_MAGIC):
            raise self._damaged(name, "is not sealed")
        return AESGCM(self._key.derive(self._purpose, 32, head[len(_MAGIC) :]))

    def _keep(self, name: str, cipher: AESGCM) -> AESGCM:
        with self._lock:
            self._ciphers[name] = cipher
            if len(self._ciphers) > _CIPHERS_MAX:
                self._ciphers.popitem(last=False)
        return cipher

    def _seal(self, name: str, salt: bytes, plain: memoryview) -> bytearray:
        sealed = bytearray(_MAGIC + salt)
        cipher, about = self._cipher_of(name, bytes(sealed)), name.encode()
        for number in range(len(plain) // _PLAIN_BYTES + 1):
            piece = plain[number * _PLAIN_BYTES : (number + 1) * _PLAIN_BYTES]
            nonce = _NONCE.pack(number, len(piece) < _PLAIN_BYTES)
            sealed += cipher.encrypt(nonce, piece, about)
        return sealed

    def _open(
        self, name: str, cipher: AESGCM, sealed: memoryview, first: int
    ) -> tuple[bytes, bool]:
        """Returns the plain bytes of whole segments from number *first* on, and True if the last
        of the object is among them."""
        pieces, about = [], name.encode()
        has_end = False
        for number, start in enumerate(range(0, len(sealed), _SEALED_BYTES), first):
            piece = sealed[start : start + _SEALED_BYTES]
            has_end = len(piece) < _SEALED_BYTES
            try:
                pieces.append(cipher.decrypt(_NONCE.pack(number, has_end), piece, about))
            except InvalidTag:
                raise self._damaged(name, "is not what was put there") from None
        return b"".join(pieces), has_end

    def _damaged(self, name: str, reason: str) -> StoreDamagedError:
        return StoreDamagedError(f"{self.where}/{name}", reason)
