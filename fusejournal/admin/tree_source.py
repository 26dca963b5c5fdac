"""The process that a layer starts for a mirror which copies the tree: ``python -P -m
fusejournal.admin.tree_source STATE [CONFIG]``. Messages of the session (wire/block_messages.py)
come on its standard input, and go to its standard output; the layer only passes them on. So neither
the making of a version nor the reading of blocks is in the way of callers.

It makes a version of the tree as it was when the journal's newest segment began: a journal can
begin there, and what comes after is shipped as to any mirror. A volume that has no store of
versions gets one in its state directory (STATE/versions).

While it runs, nothing is collected that the version needs (versions/creators.py). It ends when its
input does. Killed, it leaves nothing that matters: see versions/create.py."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from fusejournal.address import node_name
from fusejournal.admin.copy_space import check_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.disk import calls
from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import FusejournalError
from fusejournal.journal.segment import first_seq_of
from fusejournal.objects.store import ObjectStore
from fusejournal.types import Seq
from fusejournal.versions.block_source import OfferedTree, answer_blocks
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.create import create_version
from fusejournal.versions.creators import reading
from fusejournal.versions.histories import newest_usable
from fusejournal.versions.manifest import Version, list_versions
from fusejournal.wire.block_messages import AskBlocks, AskTree, TreeProgress, TreeReport
from fusejournal.wire.frames import Decoder, Message, Refusal, encode_parts
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session_states import SessionMachine, SessionState, Side

_NICE: Final = 10
_SIGN_SECONDS: Final = 2.0
_READ_BYTES: Final = 64 << 10

Send = Callable[[Message], None]


class TreeSource:
    """Answers for the volume *name*; *send* is called with each message, by one thread at a
    time."""

    def __init__(self, name: str, config: Path | None, send: Send) -> None:
        """Raises FusejournalError."""
        self._versions = VolumeVersions(name, config=config)
        self._give = send
        self._session = SessionMachine(Side.LISTENER, SessionState.ASKING)
        self._blocks: BlockReader | None = None
        self._reading = ExitStack()
        self._is_reading = False

    def close(self) -> None:
        """Lets the store be collected again."""
        self._reading.close()

    def answer(self, message: Message) -> None:
        """Answers one message. Raises FusejournalError, OSError."""
        question: AskTree | AskBlocks = self._session.received(message)
        if isinstance(question, AskTree):
            self._send(self._report(make=bool(question.make)))
        else:
            if self._blocks is None:
                # What is asked for together lies together, mostly.
                self._blocks = BlockReader(self._versions.store()).by_windows()
            for blocks in answer_blocks(self._blocks, question):
                self._send(blocks)

    def _send(self, message: Message) -> None:
        self._session.sent(message)
        self._give(message)

    def _report(self, *, make: bool) -> TreeReport:
        versions = self._versions
        source, kept = versions.source, versions.kept
        version: Version | None = None
        if make:
            version = self._make()
            self._blocks = None  # it was of before
        elif versions.state.has_versions:
            store = versions.store()
            self._read(store)
            found = list_versions(store, versions.state.uuid)
            try:
                version = newest_usable(found, source.reader, source.head_seq)
            except FusejournalError:
                version = None
        paths = source.reader.segments()
        return OfferedTree(
            version,
            kept.place.id if versions.state.has_versions else "",
            source.reader.first_seq,
            source.head_seq,
            sum(path.stat().st_size for path in paths),
        ).told()

    def _read(self, store: ObjectStore) -> None:
        """Has nothing collected that a version needs which is found from here on."""
        if not self._is_reading:
            self._reading.enter_context(reading(store, node_name(self._versions.name)))
            self._is_reading = True

    def _make(self) -> Version | None:
        """Returns the version of the tree before the newest segment; None where that is the first
        there is, and begins with entry 1."""
        source = self._versions.source
        seq = Seq(first_seq_of(source.reader.segments()[-1]) - 1)
        if not seq:
            return None
        self._check_room(seq)
        store = self._versions.kept.open_or_begin()
        self._read(store)
        if source.reader.base is not None and source.reader.base.base.seq == seq:
            return newest_usable(
                list_versions(store, self._versions.state.uuid), source.reader, seq
            )
        with self._reporting() as progress:
            return create_version(
                store,
                source.reader,
                seq,
                "",
                node_name(self._versions.name),
                time.time_ns(),
                progress,
            ).version

    def _check_room(self, seq: Seq) -> None:
        """Raises RejoinError where the version after *seq* might leave the journal without room."""
        state, reader = self._versions.state, self._versions.source.reader
        known_seq, place = Seq(reader.first_seq - 1), None
        if state.has_versions:
            place = self._versions.kept.place
            known = newest_usable(list_versions(self._versions.store(), state.uuid), reader, seq)
            known_seq = known.seq if known is not None else known_seq
        check_source(state.directory, state.backing, place, reader.segments(), known_seq)

    @contextmanager
    def _reporting(self) -> Iterator[Callable[[int, int | None], None]]:
        """Report every now and then how far the work is, whether or not it reports that itself: a
        mirror that waits takes silence for the end."""
        known: list[int | None] = [0, None]
        is_over = threading.Event()

        def report() -> None:
            while not is_over.wait(_SIGN_SECONDS):
                self._send(TreeProgress(known[0] or 0, known[1]).told())

        def progress(done: int, total: int | None) -> None:
            known[:] = [done, total]

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield progress
        finally:
            is_over.set()
            reporter.join()


def _send_to(fd: int) -> Send:
    def send(message: Message) -> None:
        for part in encode_parts(message):
            calls.write_all("tree.send", fd, part)

    return send


def serve(name: str, config: Path | None, from_fd: int, to_fd: int) -> None:
    """Answers what comes on *from_fd* until that ends; an error is reported as a refusal."""
    send, decoder = _send_to(to_fd), Decoder()
    try:
        with closing(TreeSource(name, config, send)) as source:
            while data := os.read(from_fd, _READ_BYTES):
                for message in decoder.feed(data):
                    source.answer(message)
    except BrokenPipeError:
        pass  # the layer has ended, or the mirror
    except (FusejournalError, OSError) as error:
        words = "".join(one if one.isprintable() else " " for one in str(error))
        send(Refusal(RefusalCode.COPY.value, words[:1000]))


def main() -> None:
    """Serves as the command line says, at low priority."""
    os.nice(_NICE)
    if (program := shutil.which("ionice")) is not None:
        subprocess.run(
            [program, "-c", "3", "-p", str(os.getpid())], check=False, cwd=WORKING_DIRECTORY
        )
    name, *rest = sys.argv[1:]
    to_fd = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no message
    serve(name, Path(rest[0]) if rest else None, 0, to_fd)


if __name__ == "__main__":
    main()
