"""The control socket: what a client may send, and what it gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.asking import RemoteError, ask
from fusejournal.control import serve_control
from fusejournal.errors import NotRunningError, VolumeBusyError


async def _hello(request: dict[str, Any]) -> dict[str, Any]:
    return {"hello": request.get("name")}


async def _busy(_: dict[str, Any]) -> dict[str, Any]:
    raise VolumeBusyError("in use")


async def _bug(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("bug")


COMMANDS = {"hello": _hello, "busy": _busy, "bug": _bug}


async def test_commands(nursery: trio.Nursery, tmp_path: Path) -> None:
    await nursery.start(serve_control, tmp_path / "control.sock", COMMANDS)

    async def call(command: str, **fields: Any) -> dict[str, Any]:
        return await trio.to_thread.run_sync(lambda: ask(tmp_path, command, **fields))

    assert await call("hello", name="x") == {"hello": "x"}
    with pytest.raises(RemoteError, match="in use") as caught:
        await call("busy")
    assert caught.value.exit_code == VolumeBusyError.exit_code
    with pytest.raises(RemoteError, match="KeyError"):
        await call("bug")
    with pytest.raises(RemoteError, match="not a command"):
        await call("nonsense")
    assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("sent", [b"\n", b"[]\n", b"{}\n", b"\xff\n", b"x" * 70_000, b""])
async def test_nonsense_is_answered_or_dropped(
    nursery: trio.Nursery, tmp_path: Path, sent: bytes
) -> None:
    await nursery.start(serve_control, tmp_path / "control.sock", COMMANDS)
    stream = await trio.open_unix_socket(tmp_path / "control.sock")
    async with stream:
        await stream.send_all(sent)
        await stream.send_eof()
        reply = json.loads(await stream.receive_some(10_000))
    assert reply["exit_code"] == 2
    assert (await trio.to_thread.run_sync(ask, tmp_path, "hello")) == {"hello": None}


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        ask(tmp_path, "hello")
