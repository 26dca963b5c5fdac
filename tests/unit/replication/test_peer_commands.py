"""Requests of an admin to a node about its peers, over its control socket."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.control.client import RemoteError
from fusejournal.disk import failpoints
from fusejournal.replication.peers import PeerBook
from fusejournal.wire.pairing import CODE_SECONDS
from fusejournal.wire.transport import connect
from tests.support.nodes import running_node
from tests.support.patience import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    yield
    failpoints.listen(None)


async def test_peers_come_and_go(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a") as node:
        reply = await node.ask("peer-add", name="cellar", address="192.0.2.7:7733")
        assert reply["added"]
        assert reply["peer"]["address"] == "192.0.2.7:7733"
        assert not (await node.ask("peer-add", name="cellar", address="192.0.2.7:7733"))["added"]
        assert (await node.ask("peer-pause", name="cellar"))["changed"]
        listed = await node.ask("peer-list")
        assert listed["node"] == "a"
        assert listed["fingerprint"] == node.identity.fingerprint
        (peer,) = listed["peers"]
        assert peer["paused"]
        assert PeerBook.load(node.directory).list() == node.book.list()  # on disk by then
        assert (await node.ask("peer-resume", name="cellar"))["changed"]
        before = node.changes
        assert (await node.ask("peer-remove", name="cellar"))["peer"]["name"] == "cellar"
        assert node.changes == before + 1
        assert PeerBook.load(node.directory).list() == []


@pytest.mark.parametrize(
    ("command", "fields", "exit_code"),
    [
        ("peer-add", {}, 2),
        ("peer-add", {"name": "a b", "address": "h:1"}, 2),
        ("peer-add", {"name": "x"}, 2),
        ("peer-add", {"name": "x", "address": 5}, 2),
        ("peer-add", {"name": "x", "address": ":1"}, 2),
        ("peer-remove", {"name": "x"}, 28),
        ("peer-pause", {"name": "x"}, 28),
        ("peer-resume", {"name": "x"}, 28),
        ("pair-with", {"name": "x", "address": "h:1"}, 2),
        ("pair-with", {"name": "x", "address": "h:1", "code": "short"}, 2),
    ],
)
async def test_nonsense(
    tmp_path: Path, command: str, fields: dict[str, object], exit_code: int
) -> None:
    async with running_node(tmp_path / "a", "a", listens=False) as node:
        with pytest.raises(RemoteError) as caught:
            await node.ask(command, **fields)
        assert caught.value.exit_code == exit_code
        assert node.changes == 0


async def test_what_cannot_be_saved_is_not_so(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a", listens=False) as node:
        await node.ask("peer-add", name="cellar", address="192.0.2.7:7733")
        before = node.book.list()
        failpoints.listen(failpoints.PlannedFault("peers.write", 1, "ENOSPC+"))
        for command, name in (
            ("peer-add", "x"),
            ("peer-remove", "cellar"),
            ("peer-pause", "cellar"),
        ):
            with pytest.raises(RemoteError, match="cannot be saved"):
                await node.ask(command, name=name, address="192.0.2.8:1")
            assert node.book.list() == before
        assert node.changes == 1


async def test_pairing(tmp_path: Path) -> None:
    """Both know each other afterwards, and can talk."""
    async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
        opened = await a.ask("pair-open")
        assert opened["listen"] == str(a.address)
        assert opened["fingerprint"] == a.identity.fingerprint
        assert (await a.ask("pair-state", id=opened["id"]))["state"] == "waiting"
        with pytest.raises(RemoteError, match="the code is wrong") as caught:
            await b.ask("pair-with", name="a", address=str(a.address), code="0000-0000-0000-0000")
        assert caught.value.exit_code == 27
        state = await a.ask("pair-state", id=opened["id"])
        assert (state["state"], state["wrong_tries"]) == ("waiting", 1)
        assert "the code is wrong" in state["log"][0]
        paired = await b.ask(
            "pair-with", name="mirror", address=str(a.address), code=opened["code"]
        )
        assert paired["node"] == "a"
        assert paired["peer"]["fingerprint"] == a.identity.fingerprint
        state = await a.ask("pair-state", id=opened["id"])
        assert state["state"] == "paired"
        assert state["peer"]["name"] == "b"
        assert state["peer"]["fingerprint"] == b.identity.fingerprint
        assert PeerBook.load(a.directory).get("b").certificate == b.identity.certificate
        assert PeerBook.load(b.directory).get("mirror").address == a.address
        assert (a.changes, b.changes) == (1, 1)

        assert a.address is not None
        known = b.book.get("mirror").certificate
        async with await connect(a.address, b.identity, known, insecure=False, timeout_seconds=10):
            pass
        with trio.fail_after(PATIENCE_SECONDS):
            while not a.came:
                await trio.lowlevel.checkpoint()
        assert a.came == ["b"]

        with pytest.raises(RemoteError, match="no pairing is open"):
            await b.ask("pair-with", name="mirror", address=str(a.address), code=opened["code"])


async def test_names_that_are_taken(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path / "a", "a") as a,
        running_node(tmp_path / "b", "b") as b,
        running_node(tmp_path / "c", "c") as c,
    ):
        opened = await a.ask("pair-open")
        to = {"address": str(a.address), "code": opened["code"]}
        # Where it connects: found before the code is used up on it.
        await b.ask("peer-add", name="x", address="192.0.2.7:7733")
        with pytest.raises(RemoteError, match=r"is at 192.0.2.7:7733 already") as caught:
            await b.ask("pair-with", name="x", **to)
        assert caught.value.exit_code == 27
        with pytest.raises(RemoteError, match="this is the node itself"):
            await a.ask("pair-with", name="me", **to)
        assert (await a.ask("pair-state", id=opened["id"]))["state"] == "waiting"
        # Where it listens.
        a.book.pair("b", None, c.identity.certificate)
        with pytest.raises(RemoteError, match="'b' is paired already, with another certificate"):
            await b.ask("pair-with", name="a", **to)
        assert (await a.ask("pair-state", id=opened["id"]))["state"] == "failed"
        assert b.book.find("a") is None
        assert a.book.get("b").certificate == c.identity.certificate


async def test_a_book_that_cannot_be_saved_while_pairing(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
        opened = await a.ask("pair-open")
        failpoints.listen(failpoints.PlannedFault("peers.write", 1, "ENOSPC"))
        with pytest.raises(RemoteError, match="cannot be saved"):
            await b.ask("pair-with", name="a", address=str(a.address), code=opened["code"])
        assert (await a.ask("pair-state", id=opened["id"]))["state"] == "failed"
        assert a.book.list() == b.book.list() == []


async def test_codes_end(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
        opened = await a.ask("pair-open")
        to = {"name": "a", "address": str(a.address)}
        mock_clock.jump(CODE_SECONDS)
        with pytest.raises(RemoteError, match="no pairing is open"):
            await b.ask("pair-with", **to, code=opened["code"])
        assert (await a.ask("pair-state", id=opened["id"]))["state"] == "expired"

        second = await a.ask("pair-open")
        assert (await a.ask("pair-state", id=opened["id"]))["state"] == "closed"
        assert (await a.ask("pair-close", id=second["id"]))["state"] == "closed"
        with pytest.raises(RemoteError, match="no pairing is open"):
            await b.ask("pair-with", **to, code=second["code"])

        third = await a.ask("pair-open")
        for _ in range(5):
            with pytest.raises(RemoteError, match="the code is wrong"):
                await b.ask("pair-with", **to, code=second["code"])
        state = await a.ask("pair-state", id=third["id"])
        assert (state["state"], state["wrong_tries"]) == ("waiting", 5)
        with pytest.raises(RemoteError, match="no pairing is open"):
            await b.ask("pair-with", **to, code=third["code"])
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(lines) <= 3  # of eight


async def test_one_that_does_not_listen(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a", listens=False) as a:
        with pytest.raises(RemoteError, match="--listen"):
            await a.ask("pair-open")
        assert (await a.ask("pair-state", id=7))["state"] == "closed"


async def test_nobody_there(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a", listens=False) as a:
        with pytest.raises(RemoteError, match="connection refused") as caught:
            await a.ask("pair-with", name="x", address="127.0.0.1:1", code="0" * 16)
        assert caught.value.exit_code == 26
