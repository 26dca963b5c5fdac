"""Answers the calls of consoles: each names what it asks, and gets a JSON value, or a file's bytes.

Calls about a volume's journal take turns, a volume at a time, because a reader is for one thread;
its indexes are kept from call to call. A download has a reader of its own. All work is done in
threads, so the loop only passes messages on.

The consoles are trusted: who may do what on the page is decided there."""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import trio

from fusejournal.admin.mark import set_mark
from fusejournal.admin.peers import pause_peer, resume_peer
from fusejournal.admin.source import JournalSource, open_source
from fusejournal.agent import browse, kept_versions, pairing_calls, timeline
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.disk_errors import disk_error_words
from fusejournal.agent.fields import Fields
from fusejournal.agent.line_difference import line_difference
from fusejournal.agent.mass_changes import FILES
from fusejournal.agent.overview import Overview
from fusejournal.agent.standing import standing, standing_without_journal
from fusejournal.agent.sums import Sums
from fusejournal.agent.timeline import Scans
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import FusejournalError, UsageError, WireError
from fusejournal.history.tree_cache import TreeCache
from fusejournal.journal.reader import JournalReader
from fusejournal.node.registry import find_named
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import ANSWER_BYTES_MAX, CALLS_VERSION, Call, CallPart

log = logging.getLogger(__name__)

_PART_BYTES: Final = 48 << 10
_ALIVE_SECONDS: Final = 15.0
"""The time after which a download of which nothing comes yet shows that it is alive: a quarter of
what a console waits."""
_READERS_MAX: Final = 32

OfVolume = Callable[[JournalSource, Fields], dict[str, Any]]
OfMachine = Callable[[Fields], dict[str, Any]]
Download = Callable[[JournalSource, Fields], Iterator[bytes]]


class _Volume:
    """The reader of one volume's journal, and what is kept of it from call to call, for one thread
    at a time."""

    def __init__(self, source: JournalSource) -> None:
        self.reader = source.reader
        self.scans = Scans()
        self.trees = TreeCache()
        self.sums = Sums()
        self.turn = trio.Lock()


class Calls:
    """Everything that consoles can ask of this machine, but for jobs, which are given as *more*."""

    def __init__(
        self,
        node: str,
        consoles: Callable[[], Mapping[str, str]],
        more: Mapping[str, OfMachine],
        mass_files: int = FILES,
    ) -> None:
        """*consoles* gives those that are paired now, by name; *mass_files*: see MassChanges."""
        self._node = node
        self._consoles = consoles
        self._overview = Overview(mass_files)
        # Threads that hang, and leave no room for another, do not hold it up.
        self._overview_turn = trio.CapacityLimiter(1)
        self._volumes: OrderedDict[str, _Volume] = OrderedDict()
        self._of_volume: dict[str, OfVolume] = {
            "entry": timeline.entry,
            "life": browse.life,
            "difference": browse.difference,
            "line-difference": line_difference,
            "standing": standing,
        }
        self._of_machine: dict[str, OfMachine] = {
            "mark": _mark,
            "peer-pause": partial(_pause, True),
            "peer-resume": partial(_pause, False),
            "pair-open": pairing_calls.open_code,
            "pair-state": pairing_calls.code_state,
            "pair-close": pairing_calls.close_code,
            "pair-with": pairing_calls.use_code,
            "versions": kept_versions.versions,
            "retention": kept_versions.retention,
            "version-tree": kept_versions.tree,
            "version-difference": kept_versions.difference,
            "version-protect": kept_versions.protect,
            "version-delete": kept_versions.delete,
            **more,
        }

    async def serve(self, connection: Connection) -> None:
        """Answers a console's calls, one after the other, until it ends the connection. Cancelling
        cuts it off; what a thread is at goes on to its end. Raises WireError, also once the console
        is forgotten, and when another one has its name."""
        # No await before this: the listener has just looked.
        certificate = self._consoles().get(connection.peer or "")

        def check_paired() -> None:
            if certificate is None or self._consoles().get(connection.peer or "") != certificate:
                raise WireError(f"{connection.where}: {connection.peer} is not paired any more")

        while (message := await connection.receive()) is not None:
            check_paired()
            if not isinstance(message, Call):
                raise WireError(f"{connection.where}: not a call but {type(message).__name__}")
            await self.answer(connection, message, check_paired)

    async def answer(
        self, connection: Connection, call: Call, check_paired: Callable[[], None] = lambda: None
    ) -> None:
        """Answers *call*, with an error where it fails; while a download is sent, *check_paired* is
        called for each piece: what that raises ends it. Cancelling leaves half an answer; what a
        thread is at goes on to its end. Raises WireError."""
        try:
            await self._answer(connection, call, check_paired)
        except FusejournalError as error:
            await _send_error(connection, str(error), error.exit_code)
        except OSError as error:
            await _send_error(connection, disk_error_words(error), 1)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.exception("the call %s failed on a bug", call.what)
            await _send_error(connection, f"the agent failed to do it: {error!r}", 1)

    async def _answer(
        self, connection: Connection, call: Call, check_paired: Callable[[], None]
    ) -> None:
        if call.version != CALLS_VERSION:
            raise UsageError(
                f"the console asks in version {call.version} of calls, and this agent answers in "
                f"version {CALLS_VERSION}: bring both to one release"
            )
        fields = Fields(_parse(call.fields))
        if call.what in _DOWNLOADS:
            await self._send_content(call.what, connection, fields, check_paired)
            return
        value = await self._value(call.what, fields)
        content = json.dumps(value).encode()
        if len(content) > ANSWER_BYTES_MAX:
            more = f": {value['command']}" if "command" in value else ""
            raise UsageError(
                f"the answer has {len(content) >> 20} MiB, and a page takes no more than "
                f"{ANSWER_BYTES_MAX >> 20}: ask for less, or on that machine{more}"
            )
        parts = [content[at : at + _PART_BYTES] for at in range(0, len(content), _PART_BYTES)]
        for part in parts[:-1]:
            await connection.send(CallPart("more", part))
        await connection.send(CallPart("end", parts[-1]))

    async def _value(self, what: str, fields: Fields) -> dict[str, Any]:
        if what == "overview":
            volumes = await trio.to_thread.run_sync(
                self._overview.volumes, limiter=self._overview_turn
            )
            return {"node": self._node, "volumes": volumes}
        if what == "standing":
            state = await trio.to_thread.run_sync(find_named, fields.text("volume"))
            if not state.has_journal():
                return await trio.to_thread.run_sync(standing_without_journal, state)
        if what in self._of_volume or what in _OF_KEPT:
            volume = await self._volume(fields.text("volume"))
            async with volume.turn:
                of_kept = _OF_KEPT.get(what)
                ask = self._of_volume[what] if of_kept is None else partial(of_kept, volume)
                return await trio.to_thread.run_sync(_ask, ask, volume.reader, fields)
        if (of_machine := self._of_machine.get(what)) is not None:
            return await trio.to_thread.run_sync(of_machine, fields)
        raise UsageError(f"the agent knows no call {what!r}: bring it to the console's release")

    async def _volume(self, name: str) -> _Volume:
        source = await trio.to_thread.run_sync(_open, name)
        assert source.state is not None
        # A machine may have several nodes of one volume, each with its own journal.
        key = f"{source.state.directory} {source.reader.uuid}"
        known = self._volumes.get(key)
        if known is None:
            known = self._volumes[key] = _Volume(source)
        self._volumes.move_to_end(key)
        while len(self._volumes) > _READERS_MAX:
            self._volumes.popitem(last=False)
        return known

    async def _send_content(
        self, what: str, connection: Connection, fields: Fields, check_paired: Callable[[], None]
    ) -> None:
        pieces = await trio.to_thread.run_sync(_DOWNLOADS[what], fields)
        try:
            while piece := await _next_piece(connection, pieces):
                check_paired()
                for at in range(0, len(piece), _PART_BYTES):
                    await connection.send(CallPart("more", piece[at : at + _PART_BYTES]))
        finally:
            _close(pieces)
        await connection.send(CallPart("end", b""))


def _entries(volume: _Volume, source: JournalSource, fields: Fields) -> dict[str, Any]:
    return timeline.entries(source, fields, volume.scans)


def _tree(volume: _Volume, source: JournalSource, fields: Fields) -> dict[str, Any]:
    return browse.tree(source, fields, volume.trees)


def _moments(volume: _Volume, source: JournalSource, fields: Fields) -> dict[str, Any]:
    return browse.moments(source, fields, volume.trees)


def _histogram(volume: _Volume, source: JournalSource, fields: Fields) -> dict[str, Any]:
    return volume.sums.histogram(source, fields)


_OF_KEPT: Final = {
    "entries": _entries, "tree": _tree, "moments": _moments, "histogram": _histogram,
}  # fmt: skip
"""Questions about a volume that go on from what is kept of it."""


def _of_journal(what: Download, fields: Fields) -> Iterator[bytes]:
    return what(_open(fields.text("volume")), fields)


_DOWNLOADS: Final[dict[str, Callable[[Fields], Iterator[bytes]]]] = {
    "content": partial(_of_journal, browse.content),
    "archive": partial(_of_journal, browse.archive),
    "version-content": kept_versions.content,
    "version-archive": kept_versions.archive,
}


async def _next_piece(connection: Connection, pieces: Iterator[bytes]) -> bytes:
    """Returns the next of *pieces*, or nothing at their end. While it takes long, as the first of a
    file with many entries does, empty parts show the console that it is worked on."""
    found: list[bytes] = []
    errors: list[Exception] = []
    is_there = trio.Event()

    async def find() -> None:
        try:
            found.append(await trio.to_thread.run_sync(next, pieces, b""))
        except Exception as error:
            errors.append(error)
        is_there.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find)
        while not is_there.is_set():
            with trio.move_on_after(_ALIVE_SECONDS):
                await is_there.wait()
            if not is_there.is_set():
                await connection.send(CallPart("more", b""))
    if errors:
        raise errors[0]
    return found[0]


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


def _parse(fields: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(fields)
    except UNREADABLE_JSON:
        raise UsageError("the fields of the call are no JSON object") from None
    if not isinstance(raw, dict):
        raise UsageError("the fields of the call are no JSON object")
    return raw


async def _send_error(connection: Connection, words: str, exit_code: int) -> None:
    content = json.dumps({"error": words[:4096], "exit_code": exit_code}).encode()
    await connection.send(CallPart("error", content))


def _open(name: str) -> JournalSource:
    """Opens a volume of this machine by its name; never a bare copy, because a console may not name
    files."""
    find_named(name)
    return open_source(name)


def _ask(what: OfVolume, reader: JournalReader, fields: Fields) -> dict[str, Any]:
    source = open_source(fields.text("volume"))
    now, known = source.reader.base, reader.base
    if now is not None and (known is None or known.base != now.base):
        reader.begin_behind(now)  # it was pruned since the reader was made
    return what(JournalSource(source.name, reader, source.state), fields)


def _mark(fields: Fields) -> dict[str, Any]:
    volume, name = fields.text("volume"), fields.text("name")
    made = set_mark(find_named(volume), name)
    return {**made.to_json(), "command": command_line("mark", volume, name)}


def _pause(is_paused: bool, fields: Fields) -> dict[str, Any]:
    volume, peer = fields.text("volume"), fields.text("peer")
    change = pause_peer if is_paused else resume_peer
    word = "pause" if is_paused else "resume"
    changed = change(find_named(volume), peer)
    return {**changed.to_json(), "command": command_line("peer", word, volume, peer)}
