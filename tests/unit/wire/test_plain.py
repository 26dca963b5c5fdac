"""Without TLS: only root's own nodes of this machine talk, and no relay in between."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fusejournal.errors import FusejournalError, PeerRefusedError
from fusejournal.wire.connection import CLOSED, OPEN, OPEN_UNPROVED, READY, Connection
from fusejournal.wire.identity import Identity
from fusejournal.wire.plain import PROOF_BYTES, _local_key
from fusejournal.wire.transport import Address, connect, serve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534


@asynccontextmanager
async def _listening(identity: Identity) -> AsyncIterator[tuple[Address, list[Connection]]]:
    came: list[Connection] = []

    async def note(connection: Connection) -> None:
        came.append(connection)
        await connection.receive()

    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            lambda task_status: serve(
                Address("127.0.0.1", 0),
                identity,
                dict,
                insecure=True,
                on_connection=note,
                on_pairing=note,
                task_status=task_status,
            )
        )
        yield address, came
        nursery.cancel_scope.cancel()


async def _call(identity: Identity, address: Address) -> Connection:
    return await connect(address, identity, None, insecure=True, timeout_seconds=10)


_ANOTHER_USER = """
import os, sys, trio
from fusejournal.errors import FusejournalError
from fusejournal.wire.identity import Identity
from fusejournal.wire.transport import Address, connect

nowhere = os.path
os.setgid({nobody}); os.setuid({nobody})

async def main():
    identity = Identity("", "", nowhere, nowhere)
    try:
        await connect(Address("127.0.0.1", {port}), identity, None, insecure=True,
                      timeout_seconds=10)
    except FusejournalError as error:
        print(error)
    async with await trio.open_tcp_stream("127.0.0.1", {port}) as stream:
        await stream.send_all({sent!r})
        print(await stream.receive_some(100))

trio.run(main)
"""


@pytest.mark.parametrize("sent", [OPEN + bytes(PROOF_BYTES), OPEN_UNPROVED, OPEN])
async def test_another_user_of_the_machine_is_let_in_nowhere(
    identities: dict[str, Identity], sent: bytes
) -> None:
    async with _listening(identities["a"]) as (address, came):
        await (await _call(identities["b"], address)).aclose()  # the key is there
        came.clear()
        sent = sent + b"\n" * (len(OPEN) + PROOF_BYTES - len(sent)) if sent == OPEN else sent
        script = _ANOTHER_USER.format(nobody=NOBODY, port=address.port, sent=sent)
        done = await trio.run_process(
            [sys.executable, "-c", script],
            capture_stdout=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        assert "Permission denied" in done.stdout.decode()
        assert repr(CLOSED) in done.stdout.decode()
        assert came == []


async def test_nothing_may_be_in_between(identities: dict[str, Identity]) -> None:
    """A relay, as a tunnel is one, and as a process could be that listens where a node should."""

    async def relay(stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", address.port) as other, stream:

            async def back() -> None:
                while data := await other.receive_some():
                    await stream.send_all(data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                while data := await stream.receive_some():
                    await other.send_all(data)
                nursery.cancel_scope.cancel()

    async with _listening(identities["a"]) as (address, came), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, relay, [listener])
        tunnel = Address("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises(PeerRefusedError):
            await _call(identities["b"], tunnel)
        assert came == []
        nursery.cancel_scope.cancel()


async def test_who_listens_has_to_prove_it_too(identities: dict[str, Identity]) -> None:
    async def pretend(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(READY + bytes(PROOF_BYTES))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, pretend, [listener])
        address = Address("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises(PeerRefusedError, match="nothing in between"):
            await _call(identities["b"], address)
        nursery.cancel_scope.cancel()


def _as_nobody(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def _readable(path: Path) -> None:
    path.chmod(0o755)


@pytest.mark.parametrize("spoil", [_as_nobody, _readable])
async def test_a_key_that_others_could_have_is_none(
    identities: dict[str, Identity],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: object,
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("FUSEJOURNAL_RUN_ROOT", str(run))
    async with _listening(identities["a"]) as (address, _):
        await (await _call(identities["b"], address)).aclose()
        assert (run / "local.key").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in run.iterdir()] == ["local.key"]
        assert callable(spoil)
        spoil(run)
        with pytest.raises(FusejournalError, match="root's alone"):
            await _call(identities["b"], address)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_what_is_no_key_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("FUSEJOURNAL_RUN_ROOT", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "local.key").write_bytes(content)
    with pytest.raises(FusejournalError, match="not a key"):
        _local_key()


def test_many_at_once_make_one_key(tmp_path: Path) -> None:
    script = "from fusejournal.wire.plain import _local_key; print(_local_key().hex())"
    environment = {**os.environ, "FUSEJOURNAL_RUN_ROOT": str(tmp_path / "run")}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    keys = {process.communicate()[0] for process in processes}
    assert len(keys) == 1
    assert len(bytes.fromhex(keys.pop().decode())) == 32
