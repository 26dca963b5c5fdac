"""``fusejournal peer`` and ``fusejournal pair``, on volumes that are mounted and that are not."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.address import Address
from fusejournal.config import Config
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.spec import MountSpec
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Seq
from fusejournal.wire.frames import End
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.transport import connect_for_pairing
from tests.support.nodes import PeersNode, make_volume, running_node


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "fusejournal", *arguments]


def run(*arguments: str, exit_code: int = 0) -> str:
    """Runs a command. Returns stdout if all went well, or its one line on stderr."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done
    assert "Traceback" not in done.stderr
    if exit_code:
        assert done.stderr.startswith("fusejournal: ")
        assert done.stderr.count("\n") == 1
        return done.stderr
    return done.stdout


async def run_beside(*arguments: str, exit_code: int = 0) -> str:
    return await trio.to_thread.run_sync(lambda: run(*arguments, exit_code=exit_code))


# -- peer ------------------------------------------------------------------------------------------


def test_peers_of_a_volume_that_is_not_mounted(tmp_path: Path) -> None:
    make_volume(tmp_path / "one", "one")
    assert "has no peers" in run("peer", "list", "one")
    assert run("peer", "add", "one", "cellar=192.0.2.7:7733") == "peer cellar at 192.0.2.7:7733\n"
    assert "as before" in run("peer", "add", "one", "cellar=192.0.2.7:7733")
    assert run("peer", "pause", "one", "cellar") == "peer cellar paused\n"
    assert "not changed" in run("peer", "pause", "one", "cellar")
    header, line = run("peer", "list", "one").splitlines()
    assert header.split() == ["PEER", "ADDRESS", "STATE", "FINGERPRINT"]
    assert line.split("  ") == ["cellar", "192.0.2.7:7733", "not paired; paused", "-"]
    (listed,) = json.loads(run("peer", "list", "one", "--json"))["peers"]
    assert listed == {
        "name": "cellar",
        "address": "192.0.2.7:7733",
        "fingerprint": None,
        "paused": True,
        "needs_copy": None,
        "acked_seq": 0,
        "return_address": None,
    }
    assert json.loads(run("peer", "resume", "one", "cellar", "--json"))["changed"]
    assert run("peer", "remove", "one", "cellar") == "peer cellar removed\n"
    assert PeerBook.load(tmp_path / "one").list() == []


def test_a_peer_that_is_shipped_to_later(tmp_path: Path) -> None:
    make_volume(tmp_path / "one", "one", "mirror")
    book = PeerBook.load(tmp_path / "one")
    key = load_or_make(tmp_path / "key", "vm-data")
    book.pair("vm-data", None, key.certificate)
    book.save()
    assert "  connects to us  " in _listed("one")
    book.note_return("vm-data", Address("192.0.2.7", 7733))
    book.save()
    assert "  connects to us; 192.0.2.7:7733 once this is the primary  " in _listed("one")
    shown = run("status", "one")
    assert "connects to this node (shipped to at 192.0.2.7:7733 once this is the primary)" in shown


def _listed(volume: str) -> str:
    return run("peer", "list", volume).splitlines()[1]


def test_errors(tmp_path: Path) -> None:
    make_volume(tmp_path / "one", "one")
    run("peer", "add", "one", "cellar=192.0.2.7:7733")
    assert "did you mean 'cellar'" in run("peer", "remove", "one", "celar", exit_code=28)
    assert "remove it first" in run("peer", "add", "one", "cellar=192.0.2.8:1", exit_code=2)
    assert "NAME=ADDR:PORT" in run("peer", "add", "one", "cellar", exit_code=2)
    run("peer", "list", "nothing", exit_code=3)
    run("pair", "one", exit_code=7)
    run("pair", "one", "cellar=192.0.2.7:7733", "0" * 16, exit_code=7)
    (tmp_path / "one" / "peers.json").write_text("{")
    assert "peers.json: cannot be used" in run("peer", "list", "one", exit_code=1)


def test_a_volume_that_is_held_but_does_not_answer(tmp_path: Path) -> None:
    spec = MountSpec(
        "one", tmp_path / "one", tmp_path, tmp_path / "mount", Config(), False, frozenset()
    )
    with hold_or_make_volume(spec):
        line = run("peer", "add", "one", "cellar=192.0.2.7:7733", exit_code=4)
        assert f"is held by process {os.getpid()}" in line
    run("peer", "add", "one", "cellar=192.0.2.7:7733")


@pytest.mark.parametrize("words", ["peer", "peer add", "peer list", "peer pause", "pair"])
def test_help_has_examples(words: str) -> None:
    text = run(*words.split(), "--help")
    assert "Example" in text
    assert "fusejournal p" in text


async def test_peers_of_a_running_volume(tmp_path: Path) -> None:
    async with running_node(tmp_path / "one", "one") as node:
        await run_beside("peer", "add", "one", "cellar=192.0.2.7:7733")
        await run_beside("peer", "pause", "one", "cellar")
        assert node.book.get("cellar").paused
        listed = json.loads(await run_beside("peer", "list", "one", "--json"))
        assert listed["fingerprint"] == node.identity.fingerprint
        await run_beside("peer", "resume", "one", "cellar")
        await run_beside("peer", "remove", "one", "celar", exit_code=28)
        await run_beside("peer", "remove", "one", "cellar")
        assert node.changes == 4


# -- pair ------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(node: PeersNode, *options: str) -> AsyncIterator[tuple[trio.Process, list[str]]]:
    """``fusejournal pair`` on *node*, and its lines up to the one with the command."""
    process = await trio.lowlevel.open_process(
        command("pair", node.name, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with process.stdout, process.stderr:
            text = b""
            while b"fusejournal pair" not in text or not text.endswith(b"\n"):
                part = await process.stdout.receive_some()
                assert part, await process.stderr.receive_some()
                text += part
            yield process, text.decode().splitlines()
    finally:
        process.kill()


async def rest(stream: trio.abc.ReceiveStream | None) -> str:
    assert stream is not None
    text = b""
    with trio.move_on_after(30):
        while part := await stream.receive_some():
            text += part
    return text.decode()


async def test_two_nodes_are_paired(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path / "a", "a") as a,
        running_node(tmp_path / "b", "b") as b,
        opened(a) as (process, lines),
    ):
        program, *words = shlex.split(lines[-1])
        assert program == "fusejournal"
        assert words[:2] == ["pair", "VOLUME"]
        wrong = [*words[:-1], "0000-0000-0000-0000"]
        wrong[1] = words[1] = "b"  # the volume's name there
        assert "the code is wrong" in await run_beside(*wrong, exit_code=27)
        said = await run_beside(*words)
        assert said.splitlines() == [
            f"paired with a at {a.address}: {a.identity.fingerprint}",
            "volume b is shipped to it from now on",
        ]
        assert await rest(process.stdout) == f"paired with b: {b.identity.fingerprint}\n"
        assert "the code is wrong" in await rest(process.stderr)
        assert await process.wait() == 0
        assert [peer.name for peer in b.book.list()] == ["a"]
        (row,) = (await run_beside("peer", "list", "a")).splitlines()[1:]
        assert row.split() == ["b", *["connects", "to", "us", "paired"], b.identity.fingerprint]


async def test_who_ships_to_whom_is_said(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path / "a", "a") as a,
        running_node(tmp_path / "b", "b", role="mirror"),
        opened(a) as (process, lines),
    ):
        words = [*shlex.split(lines[-1])[1:]]
        words[1] = "b"
        done = await trio.run_process(command(*words), capture_stdout=True, capture_stderr=True)
        assert "volume b is shipped to it from now on" in done.stdout.decode()
        assert "If a is its primary, that is the wrong way round" in done.stderr.decode()
        assert "this is a primary, and takes nothing from" in await rest(process.stderr)
        assert await process.wait() == 0


async def test_paired_as_json(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path / "a", "a") as a,
        running_node(tmp_path / "b", "b") as b,
        opened(a, "--json") as (process, lines),
    ):
        first = json.loads(lines[-1])
        words = shlex.split(first["command"])[1:]
        assert words[-1] == first["code"]
        words[1:3] = ["b", f"other={a.address}"]
        paired = json.loads(await run_beside(*words, "--json"))
        assert (paired["node"], paired["peer"]["name"]) == ("a", "other")
        last = json.loads(await rest(process.stdout))
        assert (last["state"], last["peer"]["fingerprint"]) == ("paired", b.identity.fingerprint)
        assert await process.wait() == 0


async def test_interrupted_it_takes_the_code_back(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a") as a, opened(a) as (process, lines):
        code = lines[-1].split()[-1]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        words = ("pair", "a", f"x={a.address}", code)
        assert "no pairing is open" in await run_beside(*words, exit_code=27)


async def test_all_that_goes_wrong_is_shown(tmp_path: Path) -> None:
    """More than the node remembers at a time."""
    async with (
        running_node(tmp_path / "a", "a") as a,
        running_node(tmp_path / "b", "b") as b,
        opened(a) as (process, lines),
    ):
        assert a.address is not None
        code = lines[-1].split()[-1]
        for _ in range(3):
            for _ in range(15):
                async with await connect_for_pairing(
                    a.address, b.identity, timeout_seconds=10
                ) as connection:
                    await connection.send(End(Seq(1)))
                    assert await connection.receive() is None
            await trio.sleep(1.2)
        await run_beside("pair", "b", f"a={a.address}", code)
        assert (await rest(process.stdout)).startswith("paired with b")
        assert (await rest(process.stderr)).count("not an offer but End") == 45
        assert await process.wait() == 0


async def test_a_newer_code_ends_the_older(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a", "a") as a, opened(a) as (process, _):
        await a.ask("pair-open")
        assert "taken back" in await rest(process.stderr)
        assert await process.wait() == 27
