"""Requests and answers of the control sockets are as the golden file has them; each is there."""

import ast
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio

import fusejournal
from fusejournal.address import Address
from fusejournal.agent.consoles import ConsoleBook, ConsolePairing
from fusejournal.control import server as server_module
from fusejournal.control.client import RemoteError, ask, follow
from fusejournal.control.reply import Reply
from fusejournal.control.server import Command, serve_control
from fusejournal.errors import VolumeBusyError
from fusejournal.replication.peer_commands import PeerCommands
from fusejournal.replication.peers import PeerBook
from fusejournal.wire.connection import Connection
from fusejournal.wire.identity import Identity
from fusejournal.wire.listener import serve
from tests.golden.controls import AGENT, NODE, REPLIES, SERVERS, WITNESS
from tests.golden.files import golden
from tests.golden.proofs import east, node

_PACKAGE = Path(fusejournal.__file__).parent
_ASKING = {"ask", "ask_layer", "follow", "follow_layer", "_ask"}
_WORDS = ("control.", "_layer", "Reply)")
"""One of these is in each module that asks, serves, or has a typed answer."""
_SERVING = {"serve_control", "serve_channel"}


@cache
def _trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(_PACKAGE)): ast.parse(text)
        for path in sorted(_PACKAGE.rglob("*.py"))
        if any(word in (text := path.read_text()) for word in _WORDS)
    }


def _constants(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


# -- typed answers ---------------------------------------------------------------------------------


def test_each_typed_answer_has_a_sample() -> None:
    known, before = {"Reply"}, set[str]()
    while known != before:
        before = set(known)
        known |= {
            found.name
            for tree in _trees().values()
            for found in ast.walk(tree)
            if isinstance(found, ast.ClassDef)
            and any(isinstance(base, ast.Name) and base.id in known for base in found.bases)
        }
    names = [type(one).__name__ for one in REPLIES]
    assert sorted(names) == sorted(known - {"Reply"})
    assert set(golden("control-v1")["replies"]) == set(names) - {"VolumeStatus"}


@pytest.mark.parametrize("sample", REPLIES, ids=lambda one: type(one).__name__)
def test_a_typed_answer_comes_back_from_its_json(sample: Reply) -> None:
    name = type(sample).__name__
    found = golden("status-v1")["primary"] if name == "VolumeStatus" else None
    found = found or golden("control-v1")["replies"][name]
    assert json.dumps(sample.to_json()) == json.dumps(found), "to the order of the keys"
    assert type(sample).from_json(found) == sample
    if name != "VolumeStatus":
        assert set(found) >= {one.name for one in fields(sample)}, "a sample has all fields"


# -- commands --------------------------------------------------------------------------------------


def _served(tree: ast.Module) -> Iterator[str]:
    """The names of commands that a module serves."""
    for found in ast.walk(tree):
        if isinstance(found, ast.FunctionDef) and found.name == "commands":
            inside: Any = found
        elif isinstance(found, ast.Call) and any(
            isinstance(one, ast.Name) and one.id in _SERVING for one in [found.func, *found.args]
        ):
            inside = found
        elif isinstance(found, ast.AnnAssign | ast.Assign | ast.AugAssign):
            targets = found.targets if isinstance(found, ast.Assign) else [found.target]
            if not any(
                isinstance(one, ast.Name) and one.id == "commands"
                for target in targets
                for one in ast.walk(target)
            ):
                continue
            for target in targets:
                if isinstance(target, ast.Subscript):
                    yield from _constants(target.slice)
            inside = found
        else:
            continue
        for one in ast.walk(inside):
            if isinstance(one, ast.Dict):
                for key in one.keys:
                    if key is not None:
                        yield from _constants(key)


def test_each_command_has_a_sample() -> None:
    found = {name: set(_served(tree)) for name, tree in _trees().items()}
    agent = found.pop("agent/consoles.py")
    assert agent == set(AGENT)
    of_nodes = {name for names in found.values() for name in names}
    assert of_nodes == set(NODE)
    assert len(of_nodes) > 20
    assert set(WITNESS) < of_nodes


def _asked() -> Iterator[tuple[str, str, set[str], bool]]:
    """Each place where a command is asked for: the module, the command, the fields, and whether
    more of them come from elsewhere."""
    for module, tree in _trees().items():
        for found in ast.walk(tree):
            if not isinstance(found, ast.Call) or not isinstance(found.func, ast.Name):
                continue
            if found.func.id not in _ASKING or module == "control/client.py":
                continue
            names = [one.arg for one in found.keywords]
            given = {one for one in names if one is not None}
            if found.func.id.startswith("follow"):
                given |= {"follow"}
            for command in (one for argument in found.args[:2] for one in _choices(argument)):
                yield module, command, given, None in names


def _choices(argument: ast.expr) -> Iterator[str]:
    match argument:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _choices(body)
            yield from _choices(orelse)


def test_each_request_is_as_its_sample() -> None:
    """The fields that the command line asks with, all of its places together."""
    asked: dict[tuple[str, str], set[str]] = {}
    is_open = set()
    for module, command, given, has_more in _asked():
        server = {"admin/witness.py": "witness", "agent/own_calls.py": "agent"}.get(module, "node")
        asked.setdefault((server, command), set()).update(given)
        if has_more:
            is_open.add((server, command))
    found = golden("control-v1")["asked"]
    for (server, command), given in asked.items():
        sample = set(found[server][command]["request"]) - {"command"}
        assert given <= sample if (server, command) in is_open else given == sample, command
    assert {name for server, name in asked if server == "node"} == set(NODE)
    assert {name for server, name in asked if server == "agent"} == set(AGENT)
    assert is_open == {("node", "mend")}


@pytest.mark.parametrize("server", SERVERS)
def test_each_answer_is_read(server: str) -> None:
    for name, one in SERVERS[server].items():
        found = golden("control-v1")["asked"][server][name]
        assert found["request"] == {"command": name, **one.request}
        if one.reads is not None:
            answer = found.get("answer") or golden("status-v1")["primary"]
            assert one.reads.from_json(answer).to_json() == answer


# -- servers ---------------------------------------------------------------------------------------


def _has_shape(answer: Any, sample: Any) -> bool:
    """True if both have the same keys and types, as far as the answer has values."""
    if isinstance(answer, dict) and isinstance(sample, dict):
        return set(answer) == set(sample) and all(
            _has_shape(value, sample[key]) for key, value in answer.items()
        )
    if isinstance(answer, list) and isinstance(sample, list):
        return all(_has_shape(one, sample[0]) for one in answer)
    return answer is None or type(answer) is type(sample)


async def _ask_golden(server: str, directory: Path, command: str, **other: Any) -> dict[str, Any]:
    """Asks by the golden request, but for *other*; the answer has to be of the golden one's kind.
    Cancelling leaves the thread that asks."""
    found = golden("control-v1")["asked"][server][command]
    request = {**found["request"], **other}
    answer = await trio.to_thread.run_sync(lambda: ask(directory, **request))
    assert _has_shape(answer, found["answer"]), (command, answer)
    return answer


async def test_what_a_node_tells_of_its_peers(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Two nodes, which are paired."""
    places, listens, served = {}, list[Address](), list[PeerCommands]()
    for name, identity in (("hall", node(tmp_path / "a")), ("east", east(tmp_path / "b"))):
        places[name] = tmp_path / name
        places[name].mkdir()
        commands = PeerCommands(
            PeerBook(places[name]), identity, name, lambda: None, lambda: listens[0]
        )
        served.append(commands)
        socket = places[name] / "control.sock"
        await nursery.start(serve_control, socket, commands.commands())
        if name == "east":
            break
        listens.append(await _listen(nursery, identity, commands))
    hall, other = places["hall"], places["east"]
    opened = await _ask_golden("node", hall, "pair-open")
    await _ask_golden("witness", hall, "pair-open")
    opened = await _ask_golden("node", hall, "pair-open")
    await _ask_golden(
        *("node", other, "pair-with"),
        name="hall", address=opened["listen"], code=opened["code"],
    )  # fmt: skip
    for command in ("pair-state", "pair-close"):
        told = await _ask_golden("node", hall, command, id=opened["id"])
        assert told["state"] == "paired"
    await _ask_golden("node", hall, "peer-add")
    await _ask_golden("node", hall, "peer-add", standby=False)
    for command in ("peer-list", "peer-pause", "peer-resume", "peer-remove"):
        await _ask_golden("node", hall, command)
    assert not served[0].is_open()


async def _listen(nursery: trio.Nursery, identity: Identity, commands: PeerCommands) -> Address:
    async def refuse(_: Connection) -> None:
        raise AssertionError("none connects but to pair")

    address: Address = await nursery.start(
        lambda task_status: serve(
            Address("127.0.0.1", 0),
            identity,
            dict,
            insecure=False,
            on_connection=refuse,
            on_pairing=commands.on_pairing,
            is_pairing_open=commands.is_open,
            task_status=task_status,
        )
    )
    return address


async def test_what_an_agent_tells_of_consoles(nursery: trio.Nursery, tmp_path: Path) -> None:
    identity = node(tmp_path / "identity")
    book = ConsoleBook(tmp_path / "consoles.json")
    book.put("hall-console", identity.certificate)
    commands = ConsolePairing(book, identity, "hall").commands()
    await nursery.start(serve_control, tmp_path / "control.sock", commands)
    for command in ("pair-open", "pair-state", "console-list", "console-remove"):
        await _ask_golden("agent", tmp_path, command)


async def test_what_comes_in_place_of_an_answer_or_before_it(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_WORKING_SECONDS", 0.01)
    lines = golden("control-v1")["lines"]
    told = trio.Event()

    async def promote(_: dict[str, Any]) -> dict[str, Any]:
        await told.wait()
        raise VolumeBusyError("in use")

    async def fail(_: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("bug")

    commands: dict[str, Command] = {"promote": promote, "restart": promote, "bug": fail}
    progress = {"promote": lambda: {"left_to_apply": 7}}
    await nursery.start(serve_control, tmp_path / "control.sock", commands, progress)
    for command, working in (("promote", "working, promote"), ("restart", "working")):
        told = trio.Event()
        async with await trio.open_unix_socket(tmp_path / "control.sock") as stream:
            await stream.send_all(json.dumps({"command": command, "follow": True}).encode() + b"\n")
            first = await stream.receive_some(4096)
            assert json.loads(first.splitlines()[0]) == lines[working]
            told.set()
            rest = b"".join([part async for part in stream]).splitlines()
            assert json.loads(rest[-1]) == lines["refused"]
    for command, line in (("bug", "bug"), ("weather", "unknown")):
        with pytest.raises(RemoteError) as refusal:
            await trio.to_thread.run_sync(ask, tmp_path, command)
        assert {"error": str(refusal.value), "exit_code": refusal.value.exit_code} == lines[line]


def test_lines_are_read(tmp_path: Path) -> None:
    """Lines of a server of then tell a client of now the same."""
    lines = golden("control-v1")["lines"]
    heard: list[object] = []
    for last in ("refused", None):
        (tmp_path / "control.sock").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "control.sock"))
            listening.listen()
            said = [lines["working"], lines["working, promote"], lines[last] if last else {"a": 1}]

            def answer(listening: socket.socket = listening, said: list[Any] = said) -> None:
                with listening.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(b"".join(json.dumps(one).encode() + b"\n" for one in said))

            thread = threading.Thread(target=answer)
            thread.start()
            try:
                if last is None:
                    assert follow(tmp_path, "promote", heard.append) == {"a": 1}
                else:
                    with pytest.raises(RemoteError, match="in use") as refusal:
                        follow(tmp_path, "promote", heard.append)
                    assert refusal.value.exit_code == lines["refused"]["exit_code"]
            finally:
                thread.join()
    assert heard == [lines["working"], lines["working, promote"]] * 2
