"""The book of peers: what it takes, what it keeps, and that a failing disk spoils nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.address import Address
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, UnknownPeerError, UsageError
from fusejournal.replication.peer_info import describe
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.types import Seq
from fusejournal.wire.identity import load_or_make
from tests.support.certificates import bad_name

CELLAR = Address("192.0.2.7", 7733)
ATTIC = Address("2001:db8::7", 7733)


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    failpoints.listen(None)


@pytest.fixture
def certificates(tmp_path: Path) -> list[str]:
    return [load_or_make(tmp_path / name, name).certificate for name in ("one", "two")]


def test_an_empty_book(tmp_path: Path) -> None:
    book = PeerBook.load(tmp_path)
    assert book.list() == []
    with pytest.raises(UnknownPeerError, match="no peer 'x': there is none") as caught:
        book.get("x")
    assert caught.value.exit_code == 28


def test_what_is_saved_comes_back(tmp_path: Path, certificates: list[str]) -> None:
    book = PeerBook.load(tmp_path)
    assert book.add("cellar", CELLAR)
    assert book.add("attic", ATTIC)
    assert book.add("guest", None)
    book.set_certificate("cellar", certificates[0])
    book.pair("new", None, certificates[1])
    assert book.pause("attic")
    assert not book.pause("attic")
    book.set_needs_copy("cellar", "seq 5 is gone")
    book.note_acked("cellar", Seq(7), Seq(6))
    book.save()
    again = PeerBook.load(tmp_path)
    assert again.list() == book.list()
    assert [peer.name for peer in again.list()] == ["attic", "cellar", "guest", "new"]
    assert again.get("cellar") == Peer(
        "cellar", CELLAR, certificates[0], False, "seq 5 is gone", Seq(7), Seq(6)
    )
    assert again.certificates() == {"cellar": certificates[0], "new": certificates[1]}
    assert book.path.stat().st_mode & 0o777 == 0o600
    again.remove("cellar")
    assert again.resume("attic")
    assert not again.resume("attic")
    again.set_needs_copy("new", None)
    again.save()
    assert [peer.name for peer in PeerBook.load(tmp_path).list()] == ["attic", "guest", "new"]


def test_what_a_peer_has_lost_is_told_while_it_has(tmp_path: Path) -> None:
    """The key that an earlier version does not know is there only as long."""
    book = PeerBook(tmp_path)
    book.add("cellar", CELLAR)
    for held_seq, on_disk_seq in ((Seq(3), 3), (Seq(0), 0), (None, 7)):
        book.note_acked("cellar", Seq(7), Seq(6), held_seq)
        book.save()
        again = PeerBook.load(tmp_path).get("cellar")
        assert again == book.get("cellar")
        assert (again.acked_seq, again.on_disk_seq) == (7, on_disk_seq)
        assert ("held_seq" in book.path.read_text()) == (held_seq is not None)
    book.path.write_text(book.path.read_text().replace("}", ', "held_seq": -1}', 1))
    with pytest.raises(FusejournalError, match="held_seq cannot be -1"):
        PeerBook.load(tmp_path)


def test_adding_again(tmp_path: Path) -> None:
    book = PeerBook(tmp_path)
    book.add("cellar", CELLAR)
    assert not book.add("cellar", CELLAR)
    assert not book.add("cellar", None)
    with pytest.raises(UsageError, match=r"is at 192.0.2.7:7733 already: remove it first"):
        book.add("cellar", ATTIC)
    with pytest.raises(UsageError, match="cannot be a peer's name"):
        book.add("a b", CELLAR)
    book.add("guest", None)
    assert book.add("guest", ATTIC)
    assert book.get("guest").address == ATTIC


def test_a_peer_that_connects_to_us_is_not_paused_here(tmp_path: Path) -> None:
    book = PeerBook(tmp_path)
    book.add("guest", None)
    with pytest.raises(UsageError, match="pause it on the node that ships"):
        book.pause("guest")
    assert not book.get("guest").paused
    book.add("guest", ATTIC)
    assert book.pause("guest")


def test_there_is_an_end_to_it(tmp_path: Path) -> None:
    book = PeerBook(tmp_path)
    for number in range(64):
        book.add(f"p{number}", None)
    with pytest.raises(UsageError, match="64 peers already"):
        book.add("one-more", None)


def test_a_mount_names_peers(tmp_path: Path, certificates: list[str]) -> None:
    book = PeerBook(tmp_path)
    assert book.merge({"cellar": CELLAR})
    assert not book.merge({"cellar": CELLAR})
    book.set_certificate("cellar", certificates[0])
    assert book.merge({"cellar": ATTIC, "new": CELLAR})
    assert book.get("cellar").address == ATTIC
    assert book.get("cellar").certificate == certificates[0]


def test_one_address_one_peer(tmp_path: Path, certificates: list[str]) -> None:
    book = PeerBook(tmp_path)
    book.add("cellar", CELLAR)
    book.add("guest", None)
    for change in (
        lambda: book.add("attic", CELLAR),
        lambda: book.add("guest", CELLAR),
        lambda: book.pair("guest", CELLAR, certificates[0]),
        lambda: book.check_pairing("attic", CELLAR, certificates[0]),
    ):
        with pytest.raises(UsageError, match=r"cannot be at .*: peer 'cellar' is there"):
            change()
    for named in ({"attic": CELLAR}, {"attic": ATTIC, "loft": ATTIC}):
        with pytest.raises(UsageError, match="is there"):
            PeerBook.load(tmp_path).merge(named | {"cellar": CELLAR})
    # One moves, and another comes to where it was.
    assert book.merge({"attic": CELLAR, "cellar": ATTIC})
    assert book.merge({"attic": ATTIC, "cellar": CELLAR})


@pytest.mark.parametrize("call", ["get", "remove", "pause", "resume"])
def test_the_nearest_name_is_named(tmp_path: Path, call: str) -> None:
    book = PeerBook(tmp_path)
    book.add("cellar", CELLAR)
    with pytest.raises(UnknownPeerError, match="did you mean 'cellar'"):
        getattr(book, call)("celar")
    with pytest.raises(UnknownPeerError, match="there is cellar"):
        getattr(book, call)("zzz")


def test_one_certificate_one_peer(tmp_path: Path, certificates: list[str]) -> None:
    book = PeerBook(tmp_path)
    book.pair("cellar", CELLAR, certificates[0])
    book.pair("cellar", None, certificates[0])
    with pytest.raises(UsageError, match="is peer 'cellar' already"):
        book.pair("attic", ATTIC, certificates[0])
    with pytest.raises(UsageError, match="paired already, with another certificate"):
        book.pair("cellar", CELLAR, certificates[1])
    with pytest.raises(UsageError, match=r"is at 192.0.2.7:7733 already"):
        book.pair("cellar", ATTIC, certificates[0])
    assert [peer.name for peer in book.list()] == ["cellar"]


def test_a_disk_that_fails(tmp_path: Path) -> None:
    """The file is the old one or the new one, and nothing is left beside it."""
    book = PeerBook(tmp_path)
    book.add("cellar", CELLAR)
    labels: list[str] = []
    failpoints.listen(labels.append)
    book.save()
    book.add("attic", ATTIC)
    for number in range(1, len(labels) + 1):
        failpoints.listen(failpoints.PlannedFault("peers.*", number, "ENOSPC"))
        with pytest.raises(FusejournalError, match=f"^{book.path}: cannot be saved"):
            book.save()
        failpoints.listen(None)
        names = [peer.name for peer in PeerBook.load(tmp_path).list()]
        assert names == (["attic", "cellar"] if number == len(labels) else ["cellar"])
        assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]
    assert labels == ["peers.write", "peers.sync", "peers.rename", "peers.directory"]


GOOD: dict[str, Any] = {
    "name": "cellar",
    "address": "192.0.2.7:7733",
    "certificate": None,
    "paused": False,
    "needs_copy": None,
    "acked_seq": 0,
    "applied_seq": 0,
    "left_seq": 7,
    "left_at": 1.5,
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        json.dumps({"format": 2, "peers": []}).encode(),
        json.dumps({"format": 1}).encode(),
        json.dumps({"format": 1, "peers": 5}).encode(),
        json.dumps({"format": 1, "peers": [5]}).encode(),
        json.dumps({"format": 1, "peers": [GOOD, GOOD]}).encode(),
        *(
            json.dumps({"format": 1, "peers": [GOOD | change]}).encode()
            for change in (
                {"name": "a b"},
                {"name": None},
                {"name": [1]},
                {"address": "nowhere"},
                {"address": 5},
                {"certificate": "nonsense"},
                {"certificate": 5},
                {"paused": "yes"},
                {"needs_copy": 5},
                {"acked_seq": -1},
                {"acked_seq": True},
                {"acked_seq": None},
                {"applied_seq": -1},
                {"extra": 1},
            )
        ),
        *(
            json.dumps(
                {"format": 1, "peers": [{k: v for k, v in GOOD.items() if k != key}]}
            ).encode()
            for key in GOOD
        ),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    with pytest.raises(FusejournalError, match=f"^{path}: cannot be used: ") as caught:
        PeerBook.load(tmp_path)
    assert str(caught.value).isprintable()
    assert path.read_bytes() == content


def test_a_certificate_that_tls_cannot_use(tmp_path: Path, certificates: list[str]) -> None:
    forged = GOOD | {"certificate": bad_name(certificates[0])}
    (tmp_path / "peers.json").write_text(json.dumps({"format": 1, "peers": [forged]}))
    with pytest.raises(FusejournalError, match="peer 'cellar': a certificate that TLS cannot use"):
        PeerBook.load(tmp_path)


def test_the_good_one_is_good(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text(json.dumps({"format": 1, "peers": [GOOD]}))
    (peer,) = PeerBook.load(tmp_path).list()
    hidden = ("certificate", "applied_seq", "left_seq", "left_at")
    shown = {k: v for k, v in GOOD.items() if k not in hidden}
    assert describe(peer).to_json() == shown | {"fingerprint": None, "return_address": None}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "peers.json").mkdir()
    with pytest.raises(FusejournalError, match="Is a directory"):
        PeerBook.load(tmp_path)
