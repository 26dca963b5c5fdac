"""Mirrors that copy the tree from this node: each is served by a process of its own
(admin/tree_source.py), to which the layer passes the messages on, and whose answers it passes back.

Used from the event loop's thread. Cancelling ends the process."""

import logging
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import PeerLostError
from fusejournal.wire.block_messages import (
    Blocks,
    TreeProgress,
    TreeReport,
    is_last_report,
    offered_bytes,
)
from fusejournal.wire.frames import Decoder, Message, encode
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

_SOURCE: Final = "fusejournal.admin.tree_source"
_COPIES_MAX: Final = 4
_RECEIVE_BYTES: Final = 256 << 10


@dataclass
class _Copy:
    """One copy under way: how far it is, for people."""

    peer: str | None
    stage: str = "asks which tree there is"
    began_at: float = 0.0
    tree_bytes: int = 0
    sent_bytes: int = 0

    def note(self, message: Message) -> None:
        """Note what goes to the mirror. Raises WireError for a report that cannot be read."""
        if isinstance(message, Blocks):
            self.sent_bytes += len(message.content)
        elif isinstance(message, TreeReport):
            if not is_last_report(message):
                done = TreeProgress.of(message).done
                self.stage = f"waits for a version of it: {done:,} entries read"
            elif (tree_bytes := offered_bytes(message)) is not None:
                self.stage = ""
                self.began_at = trio.current_time()
                self.tree_bytes = tree_bytes

    def describe(self) -> str:
        """Returns how far it is, as a status shows it."""
        if self.stage:
            return f"copies the tree: {self.stage}"
        words = f"copies the tree: {self.sent_bytes / 1e6:,.1f} MB sent, of no more than "
        words += f"{self.tree_bytes / 1e6:,.1f}"
        rate = self.sent_bytes / max(trio.current_time() - self.began_at, 0.001)
        left_bytes = self.tree_bytes - self.sent_bytes
        return words + (f"; {left_bytes / rate:,.0f} s at most" if rate and left_bytes > 0 else "")


class TreeCopies:
    """Copies of the tree of the volume in *state_dir*, whose configuration is in *config*; None:
    where it usually is."""

    def __init__(self, state_dir: Path, config: Path | None) -> None:
        arguments = [str(state_dir)] + ([str(config)] if config is not None else [])
        self._command = python_module(_SOURCE, *arguments)
        self._copies: list[_Copy] = []

    def describe(self, peer: str) -> str | None:
        """Returns how far the copy of *peer* is; None where there is none."""
        return next((copy.describe() for copy in self._copies if copy.peer == peer), None)

    def check(self) -> None:
        """Raises RefusedError where as many copies are under way as may be."""
        if (count := len(self._copies)) >= _COPIES_MAX:
            raise RefusedError(
                RefusalCode.BUSY, f"{count} mirrors copy the tree already: try again"
            )

    async def serve(self, session: SessionConnection) -> None:
        """Serves one mirror, which was let in, until it ends the session. Cancelling ends that.
        Raises PeerLostError, WireError, OSError."""
        copy = _Copy(session.peer)
        self._copies.append(copy)
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
                    nursery.start_soon(self._ask, session, process)
                    await self._answer(session, process, copy)
                    nursery.cancel_scope.cancel()
                finally:
                    with trio.CancelScope(shield=True):
                        process.kill()
                        await process.wait()
        finally:
            self._copies.remove(copy)

    async def _ask(self, session: SessionConnection, process: trio.Process) -> None:
        assert process.stdin is not None
        try:
            while (message := await session.receive_or_end()) is not None:
                await process.stdin.send_all(encode(message))
        except trio.BrokenResourceError:
            return  # it has ended, and says why
        await process.stdin.aclose()

    async def _answer(self, session: SessionConnection, process: trio.Process, copy: _Copy) -> None:
        assert process.stdout is not None
        decoder = Decoder()
        decoder.expect_batches()
        while data := await process.stdout.receive_some(_RECEIVE_BYTES):
            for message in decoder.feed(data):
                await session.send(message)
                copy.note(message)
        if not decoder.is_between:
            raise PeerLostError(session.where, "the process that reads the tree has ended")
