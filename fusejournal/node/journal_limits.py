"""The entries up to which a journal may be pruned: what holds it back, and the removal itself.

Asked by the command that prunes, of what is on disk, for its plan; and by the process that holds
the volume, its layer if one runs, right before segments go."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from fusejournal.disk import calls
from fusejournal.errors import FusejournalError
from fusejournal.journal.base import JournalBase, keep_spare, load_base, save_base
from fusejournal.journal.branches import list_branches
from fusejournal.journal.drop import drop_segments
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import BadFrameError, SegmentReader, first_seq_of, list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import VolumeState, save_state
from fusejournal.replication.parting import load_parting
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.types import Seq
from fusejournal.volume.checkpoint import CheckpointFile
from fusejournal.volume.rollback import load_intent

_NOTHING: Final = Seq(0)


class PruningRefusedError(FusejournalError):
    """The journal cannot be pruned so far."""

    exit_code = 45


class JournalLimit(NamedTuple):
    """A reason that holds a journal back, and the last entry that may go in spite of it."""

    seq: Seq
    why: str


def journal_limits(
    state: VolumeState,
    page: WatermarkPage,
    acked: Callable[[str], Seq | None] = lambda _: None,
) -> Iterator[JournalLimit]:
    """Yields all that holds the journal of *state* back, whatever the policy. *page*: its
    watermarks; *acked*: what a peer has on its disk, where more is known than the book has. Raises
    FusejournalError, OSError."""
    if state.is_mirror:
        yield _limit_of_primary(state)
        if (parting := load_parting(state.directory)) is not None:
            why = f"it parts from the journal of {parting.peer} after entry {parting.seq}"
            yield JournalLimit(Seq(parting.seq), why)
    if load_intent(state.directory) is not None:
        yield JournalLimit(_NOTHING, "a rejoin has begun")
    if (offered := state.offered) is not None:
        why = f"reign {offered.reign} was offered to {offered.peer}, and nothing is heard of it yet"
        yield JournalLimit(_NOTHING, why)
    checkpoint_seq = CheckpointFile(state.directory / "checkpoint", page).load().seq
    # (After a system crash, what the root tells decides whether the backing is too old.)
    on_disk = min(checkpoint_seq, page.rooted_seq)
    why = (
        f"the backing is on its disk up to entry {on_disk}: the next checkpoint, within seconds "
        "where it is mounted, takes that further"
    )
    yield JournalLimit(on_disk, why)
    for peer in PeerBook.load(state.directory).list():
        limit = _limit_of(peer, acked(peer.name))
        if limit is not None and not (state.is_mirror and peer.address is None):
            yield limit
    base = load_base(state.directory)
    for branch in list_branches(state.directory):
        if base is not None and branch.parted.seq < base.seq:
            continue  # it is of a journal before this one, and has all that there is of that
        seq = Seq(branch.parted.seq - 1)
        why = (
            f"branch {branch.name} parts after entry {branch.parted.seq}: where it is not needed, "
            f"'fusejournal branch drop {state.name} {branch.name}'"
        )
        yield JournalLimit(seq, why)


def _limit_of_primary(state: VolumeState) -> JournalLimit:
    """Returns how a mirror's primary holds the mirror's journal back: what it may not have on its
    disk, it takes back from here when its system crashed."""
    reader = JournalReader(state.journal_dir, state.uuid)
    seq = _NOTHING
    if reader.segments():
        head_seq = reader.head()[0]
        for entry in reader.read(head_seq, Seq(head_seq + 1)):
            seq = min(entry.flushed, entry.seq)
    return JournalLimit(seq, f"its primary is known to have entries up to {seq} on its disk")


def _limit_of(peer: Peer, acked_seq: Seq | None) -> JournalLimit | None:
    """Returns how *peer* holds the journal back, if it does; *acked_seq*: what is known of it
    beside the book."""
    if peer.needs_copy is not None or peer.is_witness:
        return None
    if peer.address is not None:
        seq = peer.on_disk_seq if acked_seq is None else acked_seq
        return JournalLimit(seq, f"peer {peer.name} has entries up to {seq}")
    if peer.heard_at is not None:
        # It comes back as a mirror, from where its history parts from this one: that is not known.
        why = (
            f"peer {peer.name} was the primary before, and may lack anything since: it has no "
            "address here, so 'fusejournal peer add' gives it one, or 'peer remove' gives it up"
        )
        return JournalLimit(_NOTHING, why)
    return None


def install_base(
    state: VolumeState,
    base: JournalBase,
    page: WatermarkPage,
    acked: Callable[[str], Seq | None] = lambda _: None,
) -> int:
    """Have the journal of *state* begin after *base*, a version of which was verified, and remove
    the segments before; for the process that holds the volume. Killed at any step, it is as before,
    or the next start goes on. Returns how many segments went. Raises PruningRefusedError, with
    nothing changed; FusejournalError, OSError."""
    known = load_base(state.directory)
    if known is not None and known.seq > base.seq:
        raise PruningRefusedError(f"the journal begins after entry {known.seq} already")
    for limit in journal_limits(state, page, acked):
        if limit.seq < base.seq:
            raise PruningRefusedError(f"entries up to {base.seq} cannot go: {limit.why}")
    _check_follows(state.journal_dir, base)
    save_base(state.directory, base)
    save_state(state)  # of the format that a program which knows no base refuses
    count = drop_segments(state.journal_dir, base.seq)
    keep_spare(state.directory)
    return count


def _check_follows(directory: Path, base: JournalBase) -> None:
    """Has the segment that begins right behind *base* be durable, because without it the base
    has no journal: the layer may have begun it just now. Raises PruningRefusedError unless there is
    one; OSError."""
    for path in list_segments(directory):
        if first_seq_of(path) != base.seq + 1:
            continue
        try:
            with closing(SegmentReader(path)) as reader:
                if (reader.header.uuid, reader.header.chain_before) == (base.uuid, base.chain):
                    _make_durable(path)
                    return
        except BadFrameError as bad:
            raise bad.in_segment(path) from None
    raise PruningRefusedError(f"no segment of {directory} follows entry {base.seq} of this history")


def _make_durable(segment: Path) -> None:
    fd = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.fsync("journal.base.segment", fd)
    finally:
        os.close(fd)
    calls.fsync_directory("journal.base.segments", segment.parent)
