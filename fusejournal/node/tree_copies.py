"""Mirrors that copy the tree from this node: each is served by a process of its own
(admin/tree_source.py), to which the layer passes the messages on, and whose answers it passes back.

Used from the event loop's thread. Cancelling ends the process."""

import logging
import subprocess
from pathlib import Path
from typing import Final

import trio

from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import PeerLostError
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import BATCH_BYTES_MAX, Decoder, encode
from fusejournal.wire.session import RefusedError

log = logging.getLogger(__name__)

_SOURCE: Final = "fusejournal.admin.tree_source"
_COPIES_MAX: Final = 4
_RECEIVE_BYTES: Final = 256 << 10


class TreeCopies:
    """Copies of the tree of the volume in *state_dir*, whose configuration is in *config*; None:
    where it usually is."""

    def __init__(self, state_dir: Path, config: Path | None) -> None:
        arguments = [str(state_dir)] + ([str(config)] if config is not None else [])
        self._command = python_module(_SOURCE, *arguments)
        self._copies = 0

    def check(self) -> None:
        """Raises RefusedError where as many copies are under way as may be."""
        if self._copies >= _COPIES_MAX:
            raise RefusedError("busy", f"{self._copies} mirrors copy the tree already: try again")

    async def serve(self, connection: Connection) -> None:
        """Serves one mirror, which was let in, until it ends the connection. Cancelling ends that.
        Raises PeerLostError, WireError, OSError."""
        self._copies += 1
        try:
            async with trio.open_nursery() as nursery:
                process: trio.Process = await trio.lowlevel.open_process(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=WORKING_DIRECTORY,
                    start_new_session=True,
                )
                try:
                    nursery.start_soon(self._ask, connection, process)
                    await self._answer(connection, process)
                    nursery.cancel_scope.cancel()
                finally:
                    with trio.CancelScope(shield=True):
                        process.kill()
                        await process.wait()
        finally:
            self._copies -= 1

    async def _ask(self, connection: Connection, process: trio.Process) -> None:
        assert process.stdin is not None
        try:
            while (message := await connection.receive()) is not None:
                await process.stdin.send_all(encode(message))
        except trio.BrokenResourceError:
            return  # it has ended, and says why
        await process.stdin.aclose()

    async def _answer(self, connection: Connection, process: trio.Process) -> None:
        assert process.stdout is not None
        decoder = Decoder()
        decoder.bytes_max = BATCH_BYTES_MAX
        while data := await process.stdout.receive_some(_RECEIVE_BYTES):
            for message in decoder.feed(data):
                await connection.send(message)
        if not decoder.is_between:
            raise PeerLostError(connection.where, "the process that reads the tree has ended")
