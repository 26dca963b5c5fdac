"""The control socket: what a client may send, and what it gets."""

import json
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio
import trio.testing

from fusejournal.control import server as server_module
from fusejournal.control.client import RemoteError, ask, follow
from fusejournal.control.reply import Reply, ReportedState
from fusejournal.control.server import serve_control
from fusejournal.errors import FusejournalError, NotRunningError, VolumeBusyError


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


@pytest.mark.parametrize(
    "sent", [b"\n", b"[]\n", b"{}\n", b"\xff\n", b"x" * 70_000, b"[" * 60_000 + b"\n", b""]
)
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


@pytest.mark.parametrize("said", [b"", b'{"hel', b'{"hello": 1}'])
async def test_a_layer_that_dies_as_it_answers(tmp_path: Path, said: bytes) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(tmp_path / "control.sock"))
        listening.listen()

        async def die() -> None:
            connection, _ = await listening.accept()
            with connection:
                await connection.recv(1000)
                await connection.send(said)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            with pytest.raises(NotRunningError, match="ended"):
                await trio.to_thread.run_sync(ask, tmp_path, "hello")


class _Light(ReportedState):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True)
class _Crossing(Reply):
    NESTED = MappingProxyType({"light": _Light})

    light: _Light


def test_a_state_goes_over_as_its_value() -> None:
    crossing = _Crossing(light=_Light.GREEN)
    assert json.dumps(crossing.to_json()) == '{"light": "green"}'
    assert _Crossing.from_json(crossing.to_json()).light is _Light.GREEN


def test_a_state_of_a_later_version_is_told_on() -> None:
    light = _Crossing.from_json({"light": "amber"}).light
    assert (light, f"{light}", type(light)) == ("amber", "amber", _Light)
    assert light not in (_Light.RED, _Light.GREEN)
    assert _Crossing(light=light).to_json() == {"light": "amber"}
    assert list(_Light) == [_Light.RED, _Light.GREEN]
    with pytest.raises(FusejournalError, match="7 for a state"):
        _Crossing.from_json({"light": 7})


@dataclass(frozen=True)
class _Traffic(Reply):
    NESTED = MappingProxyType({"crossings": _Crossing})

    cars: int
    speed: float
    names: tuple[str, ...] = ()
    open: bool | None = None
    crossings: tuple[_Crossing, ...] = ()


def test_fields_have_their_types() -> None:
    good: dict[str, Any] = {"cars": 7, "speed": 2, "names": ["a"], "open": None}
    good["crossings"] = [{"light": "green"}]
    assert _Traffic.from_json(good) == _Traffic(
        7, 2, ("a",), None, (_Crossing(light=_Light.GREEN),)
    )
    for name, values in {
        "cars": ("7", 7.0, True, None, [7], 1 << 64),
        "speed": ("fast", None, float("nan"), float("inf"), [1.0]),
        "names": ("a", [7], [None], None, {"a": "b"}),
        "open": (0, "yes", []),
        "crossings": ({"light": "green"}, [None], "x", None),
    }.items():
        for value in values:
            with pytest.raises(FusejournalError, match="answer"):
                _Traffic.from_json({**good, name: value})


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        ask(tmp_path, "hello")


async def test_who_holds_connections_keeps_nobody_out(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Far more than there is room for, each with half a request."""
    await nursery.start(serve_control, tmp_path / "control.sock", COMMANDS)
    before = len(os.listdir("/proc/self/fd"))
    held = [await trio.open_unix_socket(tmp_path / "control.sock") for _ in range(100)]
    for stream in held:
        with suppress(trio.BrokenResourceError):  # the oldest have been cut off
            await stream.send_all(b'{"command":')
    assert (await trio.to_thread.run_sync(ask, tmp_path, "hello")) == {"hello": None}
    theirs = len(os.listdir("/proc/self/fd")) - before - len(held)
    assert theirs < 50, "the server holds as many as its clients"
    for stream in held:
        await stream.aclose()


async def test_requests_at_work_are_bounded(nursery: trio.Nursery, tmp_path: Path) -> None:
    at_work, go_on = 0, trio.Event()

    async def wait(_: dict[str, Any]) -> dict[str, Any]:
        nonlocal at_work
        at_work += 1
        await go_on.wait()
        return {"at_work": at_work}

    await nursery.start(serve_control, tmp_path / "control.sock", {"wait": wait})
    streams = []
    for _ in range(40):
        stream = await trio.open_unix_socket(tmp_path / "control.sock")
        await stream.send_all(b'{"command": "wait"}\n')
        streams.append(stream)
    refused = json.loads(await streams[-1].receive_some(1000))
    assert "at work already" in refused["error"]
    go_on.set()
    assert json.loads(await streams[0].receive_some(1000)) == {"at_work": 32}
    for stream in streams:
        await stream.aclose()


async def test_a_lack_of_descriptors_only_makes_callers_wait(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    await nursery.start(serve_control, tmp_path / "control.sock", COMMANDS)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    stream = await trio.open_unix_socket(tmp_path / "control.sock")
    lowest_free = os.dup(stream.socket.fileno())
    os.close(lowest_free)
    # The connection itself is in the kernel's queue before the limit, and accepted after it.
    second = trio.socket.socket(trio.socket.AF_UNIX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (second.fileno() + 1, limits[1]))
    try:
        await second.connect(str(tmp_path / "control.sock"))
        await trio.testing.wait_all_tasks_blocked(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await second.send(b'{"command": "hello"}\n')
    assert json.loads(await second.recv(1000)) == {"hello": None}
    second.close()
    await stream.aclose()


async def test_a_layer_that_ends_while_it_is_asked_is_not_running(tmp_path: Path) -> None:
    """Its end of the connection goes with the request unread: the kernel calls that a reset."""
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(tmp_path / "control.sock"))
        listening.listen()

        async def end() -> None:
            connection, _ = await listening.accept()
            await trio.lowlevel.wait_readable(connection)
            connection.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(NotRunningError, match="ended"):
                await trio.to_thread.run_sync(ask, tmp_path, "status")


async def test_a_long_command_is_followed_to_its_end(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take as long as it will: the layer says now and then that it is at work, and how
    far."""
    monkeypatch.setattr(server_module, "_WORKING_SECONDS", 0.02)
    go_on, was_cancelled, heard = trio.Event(), trio.Event(), list[Mapping[str, Any]]()

    async def wait(request: dict[str, Any]) -> dict[str, Any]:
        try:
            await go_on.wait()
        except trio.Cancelled:
            was_cancelled.set()
            raise
        if request.get("fails"):
            raise VolumeBusyError("in use")
        return {"done": True}

    def working(told: Mapping[str, Any]) -> None:
        heard.append(told)
        if len(heard) == 3:
            trio.from_thread.run_sync(go_on.set)

    await nursery.start(
        serve_control, tmp_path / "control.sock", {"wait": wait}, {"wait": lambda: {"left": 7}}
    )

    async def call(**fields: Any) -> dict[str, Any]:
        return await trio.to_thread.run_sync(lambda: follow(tmp_path, "wait", working, **fields))

    assert await call() == {"done": True}
    assert heard[:3] == [{"working": True, "left": 7}] * 3
    with pytest.raises(RemoteError, match="in use"):
        await call(fails=True)
    # One that stops listening has it cancelled, as Ctrl-C does; one that does not follow has not.
    go_on = trio.Event()
    for follows in (False, True):
        async with await trio.open_unix_socket(tmp_path / "control.sock") as stream:
            request = {"command": "wait", "follow": follows}
            await stream.send_all(json.dumps(request).encode() + b"\n")
            await trio.sleep(0.03)
        await trio.sleep(0.05)
        assert was_cancelled.is_set() == follows
    go_on.set()
