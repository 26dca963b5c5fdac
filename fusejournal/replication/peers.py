"""The peers that a node knows, and what it keeps about them across restarts.

::

    STATE/peers.json    {"format": 1, "peers": [{name, address, certificate, paused, needs_copy,
                        acked_seq, applied_seq, left_seq, left_at, away_seconds,
                        keeps_signatures, return_address, heard_at, told_seq, held_seq,
                        is_witness}, ...]}, mode 0600

Changes are made in memory at once; :meth:`PeerBook.save` writes the whole file, atomically and
durably. A peer is a value that is replaced and never changed, so a thread may save while the event
loop goes on. Only the process that holds the volume may change the book."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fusejournal.address import Address, check_peer_name, parse_remote
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.errors import FusejournalError, UnknownPeerError, UsageError
from fusejournal.types import Seq
from fusejournal.wire.identity import normalize

PEERS_FILE: Final = "peers.json"
_FORMAT: Final = 1
_FILE_BYTES_MAX: Final = 4 << 20
_PEERS_MAX: Final = 64


@dataclass(frozen=True)
class Peer:
    """One peer."""

    name: str
    address: Address | None = None
    """The address where it listens; None for one that only connects to this node."""
    certificate: str | None = None
    """PEM; None until the two are paired."""
    paused: bool = False
    needs_copy: str | None = None
    """The reason why the journal alone does not bring it up to date any more; None where it
    does."""
    acked_seq: Seq = Seq(0)
    """The peer has acknowledged to have everything up to here on disk, and is held to that. May be
    behind the truth: it is saved now and then."""
    applied_seq: Seq = Seq(0)
    """The peer is known to have applied everything up to here; in the same way."""
    left_seq: Seq | None = None
    """The end of the journal when it took something last; None while it does."""
    left_at: float | None = None
    """The time of that, in seconds since 1970, by the clock of then: only to be shown."""
    away_seconds: float = 0.0
    """The time that it has taken nothing since, counted while this node ran."""
    keeps_signatures: bool = False
    """True if it has ever said to keep signatures of what it is sent (wire/signatures.py). Then it
    has to give them when it hands entries back."""
    return_address: Address | None = None
    """The address where it is shipped to once this node is the primary; None where ``address`` is
    that, or where it is not known."""
    heard_at: float | None = None
    """The time when a mirror heard of it last as its primary, in seconds since 1970, and then again
    every some seconds; None where it never did."""
    told_seq: Seq = Seq(0)
    """The end of its journal, as it reported to a mirror last."""
    held_seq: Seq | None = None
    """The peer has everything up to here where it has lost some of ``acked_seq``; None where it has
    all of that."""

    is_witness: bool = False
    """True if it has no data."""

    @property
    def on_disk_seq(self) -> Seq:
        """The peer is known to have everything up to here on disk."""
        return self.acked_seq if self.held_seq is None else self.held_seq

    @property
    def any_address(self) -> Address | None:
        """The address that it can be asked at."""
        return self.address or self.return_address


class PeerBook:
    """All peers of one volume, by name. See the module."""

    def __init__(self, directory: Path) -> None:
        """An empty book for the state directory *directory*; nothing is read."""
        self.path = directory / PEERS_FILE
        self.is_unsaved = False
        """True if something was noted in memory that the file does not have."""
        self._peers: dict[str, Peer] = {}
        self._saving = threading.Lock()

    @classmethod
    def load(cls, directory: Path) -> "PeerBook":
        """The book in the state directory *directory*; empty where there is none. Raises
        FusejournalError for a file that cannot be used."""
        book = cls(directory)
        try:
            with open(book.path, "rb") as file:
                content = file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return book
        except OSError as error:
            raise FusejournalError(f"{book.path}: {error.strerror}") from None
        try:
            peers = _parse(json.loads(content))
        except (UsageError, *UNREADABLE_JSON) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise FusejournalError(
                f"{book.path}: cannot be used: {what}; mend it, or remove it and pair all peers "
                "anew"
            ) from None
        book._peers = {peer.name: peer for peer in peers}
        return book

    def list(self) -> list[Peer]:
        """All peers, by name."""
        # Taken at once, because a thread that saves must not meet a change half-way.
        return sorted(tuple(self._peers.values()), key=lambda peer: peer.name)

    def get(self, name: str) -> Peer:
        """The peer *name*. Raises UnknownPeerError, with a hint at the nearest name."""
        peer = self._peers.get(name)
        if peer is None:
            # Only here: it takes its time to load.
            from difflib import get_close_matches

            near = get_close_matches(name, list(self._peers), 1)
            known = ", ".join(sorted(self._peers)) or "none"
            hint = f"; did you mean {near[0]!r}?" if near else f": there is {known}"
            raise UnknownPeerError(name, hint)
        return peer

    def certificates(self) -> dict[str, str]:
        """Name and certificate (PEM) of each peer that has one."""
        return {
            peer.name: peer.certificate
            for peer in self._peers.values()
            if peer.certificate is not None
        }

    def add(self, name: str, address: Address | None, *, standby: bool = False) -> bool:
        """Add a peer, or give one that has none its address; *standby*: that is the one for when
        this node is the primary. Returns whether anything changed. Raises UsageError for a name
        that cannot be, or that has another address, and for an address that is another's."""
        check_peer_name(name)
        if standby and address is not None:
            return self._add_standby(name, address)
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= _PEERS_MAX:
                raise UsageError(f"there are {_PEERS_MAX} peers already, and no more may be")
            self._check_address(name, address)
            self._peers[name] = Peer(name, address)
            return True
        if address is None or peer.address == address:
            return False
        if peer.address is not None:
            raise _at_another(peer)
        self._check_address(name, address)
        self._peers[name] = replace(peer, address=address)
        return True

    def _add_standby(self, name: str, address: Address) -> bool:
        is_new = self.add(name, None)
        peer = self._peers[name]
        if peer.address is not None:
            raise UsageError(
                f"peer {name!r} is shipped to already, at {peer.address}: it need not stand by"
            )
        self._peers[name] = replace(peer, return_address=address)
        return is_new or peer.return_address != address

    def merge(self, addresses: Mapping[str, Address]) -> bool:
        """Add the peers that a mount names, at the addresses it names; what is known about them
        stays. Returns whether anything changed. Raises UsageError, as where two peers have one
        address afterwards."""
        before = dict(self._peers)
        for name, address in addresses.items():
            if name in before:  # first, because a new one may come to where another was
                self._peers[name] = replace(before[name], address=address)
        for name, address in addresses.items():
            self.add(name, address)
        for peer in self.list():
            self._check_address(peer.name, peer.address)
        return self._peers != before

    def _check_address(self, name: str, address: Address | None) -> None:
        """Raise UsageError if a peer other than *name* is at *address*: one node would be shipped
        to, and counted, twice."""
        for other in self._peers.values():
            if other.name == name or address is None or other.address is None:
                continue
            if other.address.is_same(address):
                raise UsageError(
                    f"peer {name!r} cannot be at {address}: peer {other.name!r} is there; give it "
                    "another address, or remove that one first: fusejournal peer remove"
                )

    def pair(
        self, name: str, address: Address | None, certificate: str, *, standby: bool = False
    ) -> None:
        """Know the peer *name* by *certificate* (PEM) from now on, adding it if it is new;
        *standby* as for :meth:`add`. Raises as that and as :meth:`check_pairing`."""
        self.check_pairing(name, address, certificate)
        self.add(name, address, standby=standby)
        self.set_certificate(name, certificate)

    def check_pairing(self, name: str, address: Address | None, certificate: str) -> None:
        """Raise UsageError if *name* is another peer's: one with another address or certificate; or
        if *address* or *certificate* is."""
        peer = self.find(name)
        if peer is not None and peer.certificate not in (None, certificate):
            raise UsageError(
                f"peer {name!r} is paired already, with another certificate: remove it first, or "
                "use another name"
            )
        if peer is not None and None not in (peer.address, address) and peer.address != address:
            raise _at_another(peer)
        self._check_address(name, address)
        for other in self._peers.values():
            if other.certificate == certificate and other.name != name:
                raise UsageError(
                    f"this node is peer {other.name!r} already: use that name, or remove it first"
                )

    def set_certificate(self, name: str, certificate: str) -> None:
        """Know the peer *name*, which has none yet, by *certificate* (PEM). Raises
        UnknownPeerError, UsageError."""
        peer = self.get(name)
        self.check_pairing(name, None, certificate)
        self._peers[name] = replace(peer, certificate=certificate)

    def remove(self, name: str) -> None:
        """Forget the peer *name*. Raises UnknownPeerError."""
        del self._peers[self.get(name).name]

    def pause(self, name: str) -> bool:
        """Ship nothing to the peer *name* until :meth:`resume`. Returns True if it was not so
        before. Raises UnknownPeerError; UsageError for one that nothing is shipped to."""
        peer = self.get(name)
        if peer.address is None:
            raise UsageError(
                f"nothing is shipped to peer {name!r} from here, it connects to this node: pause "
                "it on the node that ships"
            )
        self._peers[name] = replace(peer, paused=True)
        return not peer.paused

    def resume(self, name: str) -> bool:
        """End a pause, and try again what was thought to need a full copy. Returns whether there
        was either. Raises UnknownPeerError."""
        peer = self.get(name)
        self._peers[name] = replace(
            peer, paused=False, needs_copy=None, left_seq=None, left_at=None, away_seconds=0.0
        )
        return peer.paused or peer.needs_copy is not None

    def begin_copy(self, name: str) -> None:
        """The peer *name* copies the tree: from now on the journal is kept for it again. Raises
        UnknownPeerError."""
        self._peers[name] = replace(
            self.get(name), needs_copy=None, left_seq=None, left_at=None, away_seconds=0.0
        )

    def set_needs_copy(self, name: str, reason: str | None) -> None:
        """Record the *reason* why the peer *name* needs a full copy; None: it does not. Raises
        UnknownPeerError."""
        self._peers[name] = replace(self.get(name), needs_copy=reason)

    def note_here(self, name: str) -> None:
        """The peer *name* takes what there is. In memory, until the next save. Raises
        UnknownPeerError."""
        if self.get(name).left_seq is not None:
            self._note(name, left_seq=None, left_at=None, away_seconds=0.0)

    def note_left(self, name: str, seq: Seq, at: float) -> None:
        """The peer *name*, if it has not before, has gone *at* a time in seconds since 1970, when
        the journal ended with *seq*. In memory, until the next save. Raises UnknownPeerError."""
        if self.get(name).left_seq is None:
            self._note(name, left_seq=seq, left_at=at, away_seconds=0.0)

    def note_away(self, name: str, seconds: float) -> None:
        """The peer *name*, which has left, has taken nothing for *seconds* more. In memory, until
        the next save. Raises UnknownPeerError."""
        peer = self.get(name)
        if peer.left_seq is not None:
            self._note(name, away_seconds=peer.away_seconds + seconds)

    def note_acked(
        self, name: str, acked_seq: Seq, applied_seq: Seq, held_seq: Seq | None = None
    ) -> None:
        """The peer *name* has acknowledged to have everything up to *acked_seq* on disk, of which
        it has only that up to *held_seq*, if that is not None; and has applied everything up to
        *applied_seq*. In memory, until the next save. Raises UnknownPeerError."""
        peer, told = self.get(name), (acked_seq, applied_seq, held_seq)
        if (peer.acked_seq, peer.applied_seq, peer.held_seq) != told:
            self._note(name, acked_seq=acked_seq, applied_seq=applied_seq, held_seq=held_seq)

    def note_signatures(self, name: str) -> None:
        """The peer *name* keeps signatures. In memory, until the next save. Raises
        UnknownPeerError."""
        if not self.get(name).keeps_signatures:
            self._note(name, keeps_signatures=True)

    def note_witness(self, name: str, is_witness: bool) -> bool:
        """The peer *name* reports whether it *is_witness*. In memory, until the next save. Returns
        True if that is new."""
        is_new = name in self._peers and self._peers[name].is_witness != is_witness
        if is_new:
            self._note(name, is_witness=is_witness)
        return is_new

    def _note(self, name: str, **changes: Any) -> None:
        self._peers[name] = replace(self._peers[name], **changes)
        self.is_unsaved = True

    def note_return(self, name: str, address: Address) -> None:
        """The peer *name*, to which nothing is shipped, listens at *address*, as it says itself. In
        memory, until the next save."""
        peer = self._peers.get(name)
        if peer is not None and peer.address is None and peer.return_address != address:
            self._note(name, return_address=address)

    def note_heard(self, name: str, seq: Seq, at: float) -> None:
        """The peer *name*, the primary, was heard *at* a time in seconds since 1970, and its
        journal ended with *seq*. In memory, until the next save."""
        if name in self._peers:
            self._note(name, heard_at=at, told_seq=seq)

    def turn_out(self) -> bool:
        """This node is a primary: ship to all peers of which it is known where they listen. Returns
        whether anything changed."""
        before = dict(self._peers)
        for name, peer in before.items():
            address = peer.return_address
            if peer.address is not None or address is None:
                continue
            if not any(one.address and one.address.is_same(address) for one in self.list()):
                self._peers[name] = replace(peer, address=address, return_address=None)
        return self._peers != before

    def turn_back(self, name: str) -> bool:
        """The peer *name* is a primary: ship nothing to it. Returns whether anything changed.
        Raises UnknownPeerError."""
        peer = self.get(name)
        if peer.address is None:
            return False
        self._peers[name] = replace(peer, address=None, return_address=peer.address)
        return True

    def find(self, name: str) -> Peer | None:
        """The peer *name*, if there is one."""
        return self._peers.get(name)

    def put_back(self, name: str, peer: Peer | None) -> None:
        """Know of *name* what :meth:`find` gave before a change that could not be saved."""
        self.is_unsaved = True  # a thread that saves the rest may have had the change, too
        if peer is None:
            self._peers.pop(name, None)
        else:
            self._peers[name] = peer

    def save(self) -> None:
        """Write the book; when it returns, it is on disk. Any thread; blocks. Raises
        FusejournalError, and the file is as before."""
        with self._saving:
            self.is_unsaved = False  # what comes from here on may be in the file or not
            raw = {"format": _FORMAT, "peers": [_raw(peer) for peer in self.list()]}
            content = json.dumps(raw, indent=2).encode()
            try:
                write_atomically("peers", self.path, content, Outlives.MACHINE)
            except OSError as error:
                self.is_unsaved = True
                raise FusejournalError(f"{self.path}: cannot be saved: {error.strerror}") from None


def _at_another(peer: Peer) -> UsageError:
    return UsageError(
        f"peer {peer.name!r} is at {peer.address} already: remove it first, or use another name"
    )


def _raw(peer: Peer) -> dict[str, Any]:
    raw = {
        "name": peer.name,
        "address": None if peer.address is None else str(peer.address),
        "certificate": peer.certificate,
        "paused": peer.paused,
        "needs_copy": peer.needs_copy,
        "acked_seq": peer.acked_seq,
        "applied_seq": peer.applied_seq,
        "left_seq": peer.left_seq,
        "left_at": peer.left_at,
        "away_seconds": peer.away_seconds,
        "keeps_signatures": peer.keeps_signatures,
        "return_address": None if peer.return_address is None else str(peer.return_address),
        "heard_at": peer.heard_at,
        "told_seq": peer.told_seq,
        "held_seq": peer.held_seq,
        "is_witness": peer.is_witness,
    }
    # What 0.1.0 does not know, and ends at, stands there only once it says something.
    return {key: value for key, value in raw.items() if key not in _NEW or value != _LATER[key]}


def _parse(raw: Any) -> list[Peer]:
    """The peers in the file's content. Raises ValueError, KeyError, TypeError, UsageError."""
    if raw["format"] != _FORMAT:
        raise ValueError("written by another version of fusejournal")
    peers: list[Peer] = []
    for one in raw["peers"]:
        peer = _parse_one(one)
        if any(peer.name == other.name for other in peers):
            raise ValueError(f"peer {peer.name!r} is there twice")
        if peer.certificate is not None and any(
            peer.certificate == other.certificate for other in peers
        ):
            raise ValueError(f"peer {peer.name!r} has another's certificate")
        peers.append(peer)
    return peers


_KINDS: Final = {
    "name": str,
    "address": str | None,
    "certificate": str | None,
    "paused": bool,
    "needs_copy": str | None,
    "acked_seq": int,
    "applied_seq": int,
    "left_seq": int | None,
    "left_at": float | None,
    "away_seconds": float,
    "keeps_signatures": bool,
    "return_address": str | None,
    "heard_at": float | None,
    "told_seq": int,
    "held_seq": int | None,
    "is_witness": bool,
}
_LATER: Final = {
    "away_seconds": 0.0,
    "keeps_signatures": False,
    "return_address": None,
    "heard_at": None,
    "told_seq": 0,
    "held_seq": None,
    "is_witness": False,
}
"""Fields that a book of the version before does not have."""
_NEW: Final = _LATER.keys() - {"away_seconds", "keeps_signatures"}


def _parse_one(raw: Any) -> Peer:
    unknown = sorted(set(raw) - set(_KINDS))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r:.100}")
    for key, kind in _KINDS.items():
        value = raw[key] if key not in _LATER else raw.get(key, _LATER[key])
        is_seq = key.endswith("_seq") and value is not None
        if not isinstance(value, kind) or (is_seq and not _is_seq(value)):
            raise ValueError(f"peer {raw['name']!r:.80}: {key} cannot be {value!r:.80}")
    address, certificate = raw["address"], raw["certificate"]
    return_address = raw.get("return_address")
    return Peer(
        check_peer_name(raw["name"]),
        None if address is None else parse_remote(address),
        None if certificate is None else _normalize(raw["name"], certificate),
        raw["paused"],
        raw["needs_copy"],
        Seq(raw["acked_seq"]),
        Seq(raw["applied_seq"]),
        raw["left_seq"],
        raw["left_at"],
        raw.get("away_seconds", 0.0),
        raw.get("keeps_signatures", False),
        None if return_address is None else parse_remote(return_address),
        raw.get("heard_at"),
        Seq(raw.get("told_seq", 0)),
        raw.get("held_seq"),
        raw.get("is_witness", False),
    )


def _normalize(name: str, certificate: str) -> str:
    try:
        return normalize(certificate)
    except ValueError as error:
        raise ValueError(f"peer {name!r:.80}: {error}") from None


def _is_seq(value: object) -> bool:
    return type(value) is int and value >= 0
