"""The work of ``rejoin``: brings a node that left the common history level, while nothing is
mounted.

A primary that another has come after, and that no start makes a mirror because its machine was
lost, becomes one by it.

What it does, in order: finds where the journal parts from the primary's (replication/parting.py);
plans (roles/rejoin.py); keeps this node's own entries as a branch; writes the intent down; opens
the volume, which goes through with it (volume/rollback.py), and closes it in order. Stopped or
killed before the intent, nothing has changed; after it, the same command, or the next mount, goes
on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import trio

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.config import Config, find_config
from fusejournal.control.reply import Reply
from fusejournal.disk import mounts
from fusejournal.errors import PrivilegeError, UnknownPeerError, VolumeBusyError
from fusejournal.journal.base import load_base
from fusejournal.journal.branches import find_branch, make_branch, position_text
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.layer.connection import is_held
from fusejournal.node.assemble import journal_options, open_base
from fusejournal.node.holding import hold_volume
from fusejournal.node.spec import Reporter, load_checked
from fusejournal.node.state_dir import VolumeState, change_role
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.fence import node_id_of
from fusejournal.replication.local_node import node_name
from fusejournal.replication.parting import (
    Parting,
    PartingInquiry,
    forget_parting,
    load_parting,
)
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.roles.rejoin import RejoinError, RejoinPlan, plan_rejoin
from fusejournal.roles.role import Event
from fusejournal.types import Position, Seq
from fusejournal.volume.boot_record import BootRecord
from fusejournal.volume.rollback import Rollback, load_rollback
from fusejournal.volume.startup import VolumeStartup
from fusejournal.volume.ties import BackingTies
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import HandshakeState

Check = Callable[[], None]
"""Called often; raises what is to end the work there."""


@dataclass(frozen=True, kw_only=True)
class Rejoined(Reply):
    """The effect that a rejoin would have, or has had."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"branch"})

    volume: str
    source: str | None
    """The peer whose history is followed; None of a rejoin that goes on and has no branch;"""
    reign: str | None
    """and the reign that it goes by."""
    rung: int
    """1: nothing to bring level; 2: this node's own entries are undone; see roles/rejoin.py."""
    parted: str
    """The position up to which the two have the same, as EPOCH/SEQ/CHAIN."""
    head_seq: int
    """The end of this node's journal before."""
    own_entries: int
    """Entries that only this node has: they become a branch."""
    files: int
    """Files and directories that they touched."""
    contents: int
    """Files among them whose content they changed."""
    branch: str | None = None
    """The branch; None before it is made."""
    done: bool


class RejoinRequest:
    """A rejoin of the volume *state*, which is not mounted.

    Args:
        peer: whose history is to be followed; None: the one known to be the primary.
        config: the configuration file; None: the volume's own.
        insecure: peers without a certificate are called in plain."""

    def __init__(
        self, state: VolumeState, peer: str | None, config: Path | None, *, insecure: bool
    ) -> None:
        self._state = state
        self._peer = peer
        self._config: Config = load_checked(config or find_config(state.name))
        self._insecure = insecure or self._config.replication.insecure

    # -- planning ----------------------------------------------------------------------------------

    def plan(self) -> Rejoined:
        """Returns what would be done; mounted or not, nothing is changed. Raises FusejournalError,
        OSError."""
        if (begun := load_rollback(self._state.directory)) is not None:
            return self._going_on(begun, done=False)
        page = WatermarkPage(self._state.watermarks, self._state.created_ns)
        try:
            return self._told(self._plan(page, self._look(page)), None, done=False)
        finally:
            page.close()

    def _look(self, page: WatermarkPage) -> Position:
        """Returns the end of the journal, by what is on the disk now."""
        journal = Journal.open(
            self._state.journal_dir,
            self._state.uuid,
            JournalOptions(),
            unclean_machine=True,
            read_only=True,
            is_copy=self._state.is_mirror,
            known_durable=page.durable_seq,
        )
        if journal.damage is not None:
            raise journal.damage
        return journal.head

    def _plan(self, page: WatermarkPage, head: Position) -> RejoinPlan:
        state = self._state
        reader = JournalReader(state.journal_dir, state.uuid)
        reader.must_reach = head.seq
        if (base := load_base(state.directory)) is not None:
            reader.base = open_base(state.directory, base, self._config.store)
        parting = self._find_parting(page, head)
        if not state.is_mirror and parting.reign.epoch <= head.epoch:
            raise RejoinError(
                f"volume {state.name} is a primary of epoch {head.epoch}, and {parting.peer} goes "
                f"by reign {parting.reign}, which has not come after it: nothing is to be done here"
            )
        return plan_rejoin(state.journal_dir, reader, head, parting)

    def _find_parting(self, page: WatermarkPage, head: Position) -> Parting:
        """Ask the peer, or take what the last primary said. Raises FusejournalError."""
        state = self._state
        book = PeerBook.load(state.directory)
        peer = self._choose(book)
        if peer is not None:
            return self._ask(page, head, peer)
        known = load_parting(state.directory)
        # (Who goes by a lower reign than this node has seen is not followed.)
        is_current = known is not None and known.reign.epoch >= page.fence.epoch
        if known is not None and is_current and self._peer in (None, known.peer):
            return known
        hint = "" if self._peer is None else f" {self._peer}"
        raise RejoinError(
            f"volume {state.name} knows of no primary{hint} whose journal parts from its own: "
            "mount it, and see what 'fusejournal status' says; or give it an address to ask at: "
            "'fusejournal peer add'"
        )

    def _choose(self, book: PeerBook) -> Peer | None:
        """Returns the peer to ask: the one that was named, or the only one with an address; None
        where it has none. Raises UnknownPeerError, RejoinError where several might be meant."""
        if self._peer is not None:
            found = book.find(self._peer)
            if found is None:
                raise UnknownPeerError(self._peer)
            return found if found.any_address is not None else None
        if load_parting(self._state.directory) is not None:
            return None
        there = [peer for peer in book.list() if peer.any_address is not None]
        if len(there) > 1:
            names = ", ".join(peer.name for peer in there)
            raise RejoinError(f"which one is the primary? --from one of {names}")
        return there[0] if there else None

    def _ask(self, page: WatermarkPage, head: Position, peer: Peer) -> Parting:
        state, seen = self._state, page.fence
        identity = load_or_make(state.directory / "identity", node_name(state.name))
        me = HandshakeState(
            node_name(state.name),
            state.uuid,
            head,
            seen.epoch,
            head.seq,
            seen.node_id if seen.epoch >= head.epoch else 0,
            node_id_of(identity.fingerprint),
            page.instance,
        )
        inquiry = PartingInquiry(me, state.journal_dir, identity, insecure=self._insecure)
        try:
            return trio.run(inquiry.ask, peer)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        except trio.TooSlowError:
            raise RejoinError(f"peer {peer.name} said nothing for too long") from None

    # -- doing it ----------------------------------------------------------------------------------

    def run(self, reporter: Reporter, check: Check) -> Rejoined:
        """Do it. *check* may stop it by an exception, after which the same goes on. Raises
        FusejournalError, OSError."""
        if os.geteuid() != 0:
            raise PrivilegeError("a rejoin changes the backing, and needs root: try sudo")
        state = self._state
        with hold_volume(state), self._open_backing() as root_fd:
            page = WatermarkPage(state.watermarks, state.created_ns)
            begun = load_rollback(state.directory)
            try:
                if begun is None:
                    told = self._begin(root_fd, page)
                else:
                    told = self._going_on(begun, done=True)
                if load_rollback(state.directory) is not None:
                    self._change_role(page)
                    self._go_through(os.dup(root_fd), reporter, check)
            finally:
                page.close()
            forget_parting(state.directory)
            return told

    def _change_role(self, page: WatermarkPage) -> None:
        """Have a former primary be a mirror, of the reign that has come after its own."""
        if not self._state.is_mirror:
            self._state = change_role(self._state, Event.DEMOTED, page.fence)

    @contextmanager
    def _open_backing(self) -> Iterator[int]:
        """The backing, which nothing covers. Raises VolumeBusyError, MountError, BackingError."""
        state = self._state
        if is_held(state.directory / "connection"):
            raise VolumeBusyError(
                f"the mount of volume {state.name} is held for its next layer: mount it, or "
                f"'fusejournal umount {state.name}', first"
            )
        with mounts.uncovered(state.mountpoint, state.name):
            root_fd = mounts.open_backing(state.backing)
            try:
                yield root_fd
            finally:
                os.close(root_fd)

    def _begin(self, root_fd: int, page: WatermarkPage) -> Rejoined:
        """Keep the branch, and write the intent down."""
        state = self._state
        root = BackingRoot(root_fd, state.uuid)
        boot = BootRecord(state.directory, root).read()
        ties = BackingTies(
            state.directory, state.backing, root, page, is_mirror=state.is_mirror, adopt=False
        )
        ties.read_mark(read_only=False)
        journal = Journal.open(
            state.journal_dir,
            state.uuid,
            journal_options(self._config.journal),
            unclean_machine=not boot.is_this,
            is_copy=state.is_mirror,
            known_durable=max(page.durable_seq, ties.position.seq if ties.position else Seq(0)),
        )
        ties.check(journal)
        head = journal.head
        journal.close()
        plan = self._plan(page, head)
        if plan.rung == 1 and state.is_mirror:
            return self._told(plan, None, done=True)
        parting, name = plan.parting, None
        if plan.rung > 1:
            reign = str(parting.reign)
            name = make_branch(
                state.directory, state.uuid, plan.position, head, parting.peer, reign
            ).name
        # Nothing of a lower reign comes in again.
        page.fence = page.fence.after(parting.reign)
        page.sync()
        # A primary applies before it flushes: after a crash its backing may have more.
        # (A CLEAN that was the last entry when it was opened again says nothing of what came then.)
        ends_clean = journal.ends_clean and head.seq > boot.began_seq
        may_be_ahead = not state.is_mirror and not boot.is_this and not ends_clean
        Rollback(plan.position, name, may_be_ahead).save(state.directory)
        return self._told(plan, name, done=True)

    def _go_through(self, root_fd: int, reporter: Reporter, check: Check) -> None:
        """Open the volume, which does what is left to do, and close it in order."""
        state = self._state
        page = WatermarkPage(state.watermarks, state.created_ns)
        startup = VolumeStartup(
            state.directory,
            state.uuid,
            state.backing,
            root_fd,
            journal_options(self._config.journal),
            reporter,
            page,
            is_mirror=True,
            base_tree=partial(open_base, state.directory, config=self._config.store),
        )
        startup.open(read_only=False)
        startup.recover(read_only=False, check=check)
        for _ in startup.start_epoch_and_import(read_only=False):
            pass
        startup.close()

    # -- in words ----------------------------------------------------------------------------------

    def _going_on(self, begun: Rollback, *, done: bool) -> Rejoined:
        """Returns the rest of a rejoin that was stopped."""
        losing = begun.losing(self._state.directory)
        source = reign = None
        head_seq = begun.position.seq
        if begun.branch is not None:
            branch = find_branch(self._state.directory, begun.branch)
            source, reign, head_seq = branch.source, branch.reign, branch.head.seq
        return Rejoined(
            volume=self._state.name,
            source=source,
            reign=reign,
            rung=1 if begun.branch is None else 2,
            parted=position_text(begun.position),
            head_seq=head_seq,
            own_entries=head_seq - begun.position.seq,
            files=len(losing.fids),
            contents=len(losing.contents),
            branch=begun.branch,
            done=done,
        )

    def _told(self, plan: RejoinPlan, branch: str | None, *, done: bool) -> Rejoined:
        return Rejoined(
            volume=self._state.name,
            source=plan.parting.peer,
            reign=str(plan.parting.reign),
            rung=plan.rung,
            parted=position_text(plan.position),
            head_seq=plan.head.seq,
            own_entries=plan.own_entries,
            files=len(plan.losing.fids),
            contents=len(plan.losing.contents),
            branch=branch,
            done=done,
        )
