"""The part of ``rejoin`` for a node whose journal does not meet its source's: the tree of the
source is copied into the node's own store of versions, and becomes the base of its journal.

In order: the volume is brought to where its journal is applied and all is on the disk; a version of
that tree is made, so that only what differs comes over the link, and only that is changed; the
source's tree is fetched (roles/tree_copy.py), with the first entries behind it; all of the old
journal is kept as a branch, because it cannot be determined any more which of its entries the
source has; then the intent is written down (volume/whole_set.py), and the volume is opened, which
goes through with it. Stopped or killed before the intent, what was fetched stays, and is not
fetched again; after it, the same command, or the next mount, goes on.

A new mirror of a source whose journal begins with entry 1 has the choice (:func:`is_cheaper`)."""

import os
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import trio

from fusejournal.address import node_name
from fusejournal.admin.copy_space import check_target
from fusejournal.admin.prune_journal import pruning_alone
from fusejournal.admin.version_store import VolumeStore
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.config import Config
from fusejournal.disk import calls
from fusejournal.disk.syscalls import list_directory
from fusejournal.errors import BackingError, JournalDamagedError, PeerLostError
from fusejournal.journal.base import load_base
from fusejournal.journal.branches import make_branch, versions_of_branches
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import BadFrameError, SegmentReader, list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.assemble import assemble_startup, journal_options, open_base
from fusejournal.node.spec import Reporter
from fusejournal.node.state_dir import VolumeState, join_volume
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectStore
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.peers import Peer
from fusejournal.roles.rejoin import RejoinError
from fusejournal.roles.role import Role
from fusejournal.roles.tree_copy import Fetched, TreeCopy
from fusejournal.types import Position, Seq, StageProgress
from fusejournal.versions.base_tree import base_of
from fusejournal.versions.bases import keys_pinned_by, pin, unpin
from fusejournal.versions.block_source import OfferedTree
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import Version, list_versions
from fusejournal.volume.recovery import decide_in_doubt
from fusejournal.volume.whole_set import NEW_JOURNAL, WholeSet
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import HandshakeState

_WORTH: Final = 2
_SMALL_BYTES: Final = 64 << 20
_Result = TypeVar("_Result")

Check = Callable[[], None]
"""Runs often; raises what is to end the work there."""


class CopiedTree(NamedTuple):
    """A copy of a tree, planned or done."""

    source: str
    reign: str
    offered: OfferedTree
    by_journal: bool
    """True if nothing is copied, because the whole journal is there, and is cheaper."""
    is_fresh: bool
    """True if this node had nothing."""
    head: Position
    """The end of this node's journal before."""
    fetched: Fetched = Fetched(0, 0)
    branch: str | None = None


def is_cheaper(offered: OfferedTree) -> bool:
    """Returns True if a new mirror does better to get the journal from entry 1 on than the tree:
    where it is there at all, and no more than twice as large as all content, or small; or where no
    version tells how large that is, because to make one the source would have to read its whole
    journal, and keep a copy of all content beside it."""
    if offered.first_seq != 1:
        return False
    if offered.version is None or offered.journal_bytes <= _SMALL_BYTES:
        return True
    return offered.journal_bytes <= _WORTH * offered.version.content_bytes


class WholeRejoin:
    """Makes a volume level with a peer by a copy of its tree.

    Args:
        state: of the volume, which this process holds.
        peer, me: the peer, and what this node greets it with.
        config, config_file: the volume's configuration, and the file; None: the volume's own.
        insecure: peers without a certificate are called in plain.
        force: a new mirror copies the tree, whatever is cheaper.
        ignores_space: the room that there seems to be is no reason not to begin."""

    def __init__(
        self,
        state: VolumeState,
        peer: Peer,
        me: HandshakeState,
        config: Config,
        config_file: Path | None,
        *,
        insecure: bool,
        force: bool,
        ignores_space: bool,
    ) -> None:
        self._ignores_space = ignores_space
        self.state = state
        self._me = me._replace(uuid=None) if state.role is Role.UNINITIALIZED else me
        self._peer = peer
        self._config = config
        self._kept = VolumeStore(state, do_not_wait, config_file)
        self._insecure = insecure
        self._force = force
        self._is_fresh = not list_segments(state.journal_dir)

    def plan(self) -> CopiedTree:
        """Returns what would be done: the sizes are those of the source's newest version. Raises
        FusejournalError, OSError."""
        copy = self._copy(_show_nothing)
        offered = _run(copy.ask)
        head = self._me.position
        if not self.state.is_mirror and copy.reign.epoch <= head.epoch:
            raise RejoinError(
                f"volume {self.state.name} is a primary of epoch {head.epoch}, and {copy.node} "
                f"goes by reign {copy.reign}, which has not come after it: nothing is to be done"
            )
        by_journal = self._is_fresh and not self._force and is_cheaper(offered)
        reign = str(copy.reign)
        return CopiedTree(copy.node, reign, offered, by_journal, self._is_fresh, head)

    def begin(self, root_fd: int, reporter: Reporter, check: Check) -> CopiedTree:
        """Fetch all that is lacking, and write the intent down. Raises FusejournalError, OSError:
        what was fetched stays then."""

        def progress(stage: str, done: int, total: int | None, unit: str) -> None:
            check()
            reporter.progress(stage, done, total, unit)

        # (The source begins a process for each question; it is asked before only where its answer
        # can be in the way of a copy.)
        has_choice = self._is_fresh and not self._force
        if (has_choice or not self.state.is_mirror) and (planned := self.plan()).by_journal:
            return planned
        if self._is_fresh:
            _check_empty(root_fd, self.state.backing)
        store = self._kept.open_or_begin()
        own = None if self._is_fresh else self._own_version(root_fd, store, reporter, progress)
        if own is not None:
            self._pin(store, own)  # its tree is what the backing is compared with, to the end
        copy = self._copy(progress)
        own_trees = own.trees if own is not None else None
        made_by = node_name(self.state.name)

        def check_room(version: Version) -> None:
            if not self._ignores_space:
                place = self._kept.place
                check_target(self.state.backing, place, version, own, reporter.warning)

        offered, fetched = _run(partial(copy.fetch, store, own_trees, made_by, check_room))
        reign, head = str(copy.reign), self._me.position
        planned = CopiedTree(copy.node, reign, offered, False, self._is_fresh, head, fetched)
        if (version := offered.version) is not None:
            self._fetch_journal(copy, store, version)
            branch = self._keep_branch(planned) if own is not None else None
            with pruning_alone(self.state):
                # (One that began before may have taken off what it took for left over.)
                for one in (version, own):
                    if one is not None:
                        self._pin(store, one)
                self._commit(root_fd, copy, version, own, branch)
            return planned._replace(branch=branch)
        if not self._is_fresh:
            raise RejoinError(
                f"{self._peer.name} has one segment of journal only, from entry 1 on, and another "
                "history than this node: begin this one anew, with an empty directory and a new "
                "--state"
            )
        return planned._replace(by_journal=True)  # there is nothing but the newest segment

    # -- steps -------------------------------------------------------------------------------------

    def _copy(self, progress: StageProgress) -> TreeCopy:
        identity = load_or_make(self.state.directory / "identity", node_name(self.state.name))
        return TreeCopy(self._peer, self._me, identity, progress, insecure=self._insecure)

    def _own_version(
        self, root_fd: int, store: ObjectStore, reporter: Reporter, progress: StageProgress
    ) -> Version:
        """Returns the version of the tree that the backing has, which is on the disk when this
        returns."""
        state = self.state
        applied_seq = self._recover(root_fd, reporter)
        tree, base = None, load_base(state.directory)
        if base is not None:
            tree = open_base(state.directory, base, self._config.store)
            if base.seq == applied_seq:
                found = list_versions(store, state.uuid)
                return next(one for one in found if one.key == base.version)

        reader = JournalReader(state.journal_dir, state.uuid, base=tree)

        def tell(done: int, total: int | None) -> None:
            progress("making a version of what is here", done, total, "entries")

        made_by = node_name(state.name)
        return create_version(store, reader, applied_seq, "", made_by, time.time_ns(), tell).version

    def _recover(self, root_fd: int, reporter: Reporter) -> Seq:
        """Have the backing be what the journal says up to an entry, which is returned, and all on
        the disk."""
        state = self.state
        startup = assemble_startup(
            replace(state, role=Role.MIRROR) if state.is_mirror else state,  # there is a journal
            os.dup(root_fd),
            journal_options(self._config.journal),
            reporter,
            WatermarkPage(state.watermarks, state.created_ns),
            partial(open_base, state.directory, config=self._config.store),
        )
        startup.open(read_only=False)
        startup.recover(read_only=False)
        if state.is_mirror:
            for _ in startup.start_epoch_and_import(read_only=False):
                pass
            # The tree is compared as of an entry: so none may be there of which that is not known.
            decide_in_doubt(startup.volume, startup.page.committed_seq)
        applied_seq = startup.volume.catalog.applied_seq
        startup.close(becomes_mirror=not state.is_mirror)
        return applied_seq

    def _fetch_journal(self, copy: TreeCopy, store: ObjectStore, version: Version) -> None:
        """Have the first entries behind *version*, which no one may delete from now on."""
        self._pin(store, version)
        base = base_of(version, self._kept.place.id)
        _run(partial(copy.fetch_segment, self.state.directory / NEW_JOURNAL, base))

    def _pin(self, store: ObjectStore, version: Version) -> None:
        """Have no one delete *version* until the end (:func:`pin_base_alone`)."""
        pin(store, version.key, version.uuid, self.state.created_ns)

    def _keep_branch(self, planned: CopiedTree) -> str:
        """Keep all of the journal that there was: which of it the source has, too, cannot be
        determined."""
        state = self.state
        first = list_segments(state.journal_dir)[0]
        try:
            with closing(SegmentReader(first)) as segment:
                header = segment.header
        except BadFrameError as bad:
            raise JournalDamagedError(first, bad.offset, bad.seq, bad.reason) from None
        before = Position(header.epoch, Seq(header.first_seq - 1), header.chain_before)
        reader = JournalReader(state.journal_dir, state.uuid)
        head_seq, _ = reader.head()
        (last,) = reader.read(head_seq, Seq(head_seq + 1))
        head = Position(self._me.position.epoch, head_seq, last.chain)
        branch = make_branch(
            state.directory, state.uuid, before, head, planned.source, planned.reign
        )
        return branch.name

    def _commit(
        self,
        root_fd: int,
        copy: TreeCopy,
        version: Version,
        own: Version | None,
        branch: str | None,
    ) -> None:
        """Write down that this node becomes what was fetched."""
        state = self.state
        with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
            page.raise_fence(copy.reign)  # nothing of a lower one comes in again
            page.sync()
        if own is None:
            _check_empty(root_fd, state.backing)
            BackingRoot(root_fd, version.uuid).mark()
            calls.fsync("rejoin.root.mark", root_fd)
        if state.role is Role.UNINITIALIZED:
            self.state = join_volume(state, version.uuid)
        base = base_of(version, self._kept.place.id)
        roots = (None, None) if own is None else (own.inodes.hex(), own.names.hex())
        WholeSet.begun(base, roots[0], roots[1], branch).save(state.directory)


def pin_base_alone(state: VolumeState, config_file: Path | None) -> None:
    """Have no version pinned by the journal of *state* any more but that of its base, and those of
    its branches'. Raises StoreError, FusejournalError, OSError."""
    base = load_base(state.directory)
    if base is not None:
        store = VolumeStore(state, do_not_wait, config_file).open(writing=True)
        kept = {base.version} | versions_of_branches(state.directory)
        for key in keys_pinned_by(store, state.created_ns) - kept:
            unpin(store, key, state.created_ns)


def _run(work: Callable[[], Awaitable[_Result]]) -> _Result:
    """Runs *work*, which asks a peer. Raises FusejournalError, OSError."""
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    except PeerLostError as error:
        reason = f"{error.reason}: what has come is kept, and the same command goes on"
        raise PeerLostError(error.where, reason) from None
    except trio.TooSlowError:
        raise RejoinError("the peer said nothing for too long: try again, it goes on") from None


def _check_empty(root_fd: int, backing: Path) -> None:
    names = sorted(map(os.fsdecode, list_directory(root_fd)))
    if names:
        raise BackingError(
            backing, f"is not empty ({names[0]!r} is there), and a new mirror begins with nothing"
        )


def _show_nothing(*_: object) -> None:
    """Progress that is not shown."""
