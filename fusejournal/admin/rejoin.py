"""The work of ``rejoin``: brings a node that left the common history level, while nothing is
mounted.

A primary that another has come after, and that no start makes a mirror because its system
crashed, becomes one by it.

What it does, in order: finds where the journal parts from the primary's (replication/parting.py);
plans (roles/rejoin.py); keeps this node's own entries as a branch; writes the intent down; opens
the volume, which goes through with it (volume/rollback.py), and closes it in order. Stopped or
killed before the intent, nothing has changed; after it, the same command, or the next mount, goes
on."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import trio

from fusejournal.address import node_name
from fusejournal.admin.rejoin_whole import Check, CopiedTree, WholeRejoin, pin_base_alone
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.config import Config, find_config
from fusejournal.control.reply import Reply
from fusejournal.disk import mounts
from fusejournal.errors import PrivilegeError, VolumeBusyError
from fusejournal.journal.base import load_base
from fusejournal.journal.branches import find_branch, list_branches, make_branch
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.layer.connection import is_held
from fusejournal.node.assemble import assemble_startup, journal_options, open_base
from fusejournal.node.holding import hold_volume
from fusejournal.node.spec import Reporter, load_checked
from fusejournal.node.state_dir import VolumeState, change_role, load_state, save_state
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.parting import (
    Parting,
    PartingInquiry,
    forget_parting,
    load_parting,
)
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.roles.rejoin import (
    ANEW,
    RejoinError,
    RejoinPlan,
    TooLittleInCommonError,
    plan_rejoin,
)
from fusejournal.roles.role import Event, Role
from fusejournal.types import Epoch, Position, Seq
from fusejournal.volume.boot_record import BootRecord
from fusejournal.volume.rollback import Rollback, load_intent
from fusejournal.volume.ties import BackingTies
from fusejournal.volume.whole_set import WholeSet
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import HandshakeState, RefusedError


@dataclass(frozen=True, kw_only=True)
class Rejoined(Reply):
    """The effect that a rejoin would have, or has had."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"branch"})

    volume: str
    source: str | None
    """The peer whose history is followed; None of a rejoin that goes on and has no branch."""
    reign: str | None
    """The reign that *source* goes by."""
    rung: int
    """1: nothing to bring level; 2: this node's own entries are undone; 3: it becomes the source's
    tree by what differs; 4: by a copy of all; see roles/rejoin.py."""
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
    tree_seq: int = 0
    """The entry as of which the source's tree is, or its newest version, of rungs 3 and 4."""
    tree_bytes: int = 0
    """The bytes of all content in the source's tree, or its newest version."""
    tree_files: int = 0
    """The files and directories in the source's tree, or its newest version; 0 where the source has
    no version yet."""
    fetched_bytes: int = 0
    """The bytes that came over the link."""
    journal_bytes: int = 0
    """The bytes of the whole journal, where a new mirror gets that in place of the tree."""


class RejoinRequest:
    """A rejoin of a volume.

    Args:
        state: the volume, which is not mounted.
        peer: whose history is to be followed; None: the one known to be the primary.
        config: the configuration file; None: the volume's own.
        insecure: peers without a certificate are called in plain.
        whole: a new mirror copies the tree, though the source has the whole journal.
        ignores_space: a copy begins whatever room there seems to be."""

    def __init__(
        self,
        state: VolumeState,
        peer: str | None,
        config: Path | None,
        *,
        insecure: bool,
        whole: bool = False,
        ignores_space: bool = False,
    ) -> None:
        self._ignores_space = ignores_space
        self._state = state
        self._peer = peer
        self._config_file = config
        self._config: Config = load_checked(config or find_config(state.name))
        self._whole = whole
        self._insecure = insecure or self._config.replication.insecure

    # -- planning ----------------------------------------------------------------------------------

    @property
    def is_begun(self) -> bool:
        """True if a rejoin here was begun and stopped: only that can be gone on with. Reading it
        raises FusejournalError, OSError."""
        return load_intent(self._state.directory) is not None

    def plan(self) -> Rejoined:
        """Returns what would be done; mounted or not, nothing is changed. Raises FusejournalError,
        OSError."""
        if (begun := load_intent(self._state.directory)) is not None:
            return self._going_on(begun, done=False)
        page = WatermarkPage(self._state.watermarks, self._state.created_ns)
        try:
            whole = self._if_new(page)
            if whole is None:
                head = self._look(page)
                try:
                    return self._report(self._plan(page, head), None, done=False)
                except TooLittleInCommonError as error:
                    whole = self._copying(page, head, error)
        finally:
            page.close()
        return self._report_whole(whole.plan(), done=False)

    def _if_new(self, page: WatermarkPage) -> WholeRejoin | None:
        """Returns the copying of all, for a mirror that has nothing yet; None for another."""
        state = self._state
        if list_segments(state.journal_dir) or not state.is_mirror:
            return None
        return self._copying(page, Position(Epoch(0), Seq(0), 0), None)

    def _copying(
        self, page: WatermarkPage, head: Position, error: TooLittleInCommonError | None
    ) -> WholeRejoin:
        """Returns the copying of the tree of the peer. Raises *error* where there is none to be
        asked, and RejoinError."""
        peer = self._choose(PeerBook.load(self._state.directory), can_be_known=False)
        if peer is None:
            raise error or RejoinError(
                f"volume {self._state.name} is a new mirror, and knows no address of a primary: "
                "mount it, and let its primary call it once; or give it one: 'fusejournal peer add'"
            )
        me = self._me(page, head)
        return WholeRejoin(
            self._state,
            peer,
            me,
            self._config,
            self._config_file,
            insecure=self._insecure,
            force=self._whole,
            ignores_space=self._ignores_space,
        )

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
        tree, base = None, load_base(state.directory)
        if base is not None:
            tree = open_base(state.directory, base, self._config.store)
        reader = JournalReader(state.journal_dir, state.uuid, base=tree, must_reach=head.seq)
        parting = self._find_parting(page, head)
        if not state.is_mirror and parting.reign.epoch <= head.epoch:
            raise RejoinError(
                f"volume {state.name} is a primary of epoch {head.epoch}, and {parting.peer} goes "
                f"by reign {parting.reign}, which has not come after it: nothing is to be done here"
            )
        return plan_rejoin(state.journal_dir, reader, head, parting)

    def _find_parting(self, page: WatermarkPage, head: Position) -> Parting:
        """Ask the peer, or take what the last primary reported. Raises FusejournalError."""
        state = self._state
        book = PeerBook.load(state.directory)
        peer = self._choose(book)
        if peer is not None:
            return self._ask(page, head, peer)
        known = load_parting(state.directory)
        # (A peer that goes by a lower reign than this node has seen is not followed.)
        is_current = known is not None and known.reign.epoch >= page.fence.epoch
        if known is not None and is_current and self._peer in (None, known.peer):
            return known
        hint = "" if self._peer is None else f" {self._peer}"
        raise RejoinError(
            f"volume {state.name} knows of no primary{hint} whose journal parts from its own: "
            "mount it, and see what 'fusejournal status' says; or give it an address to ask at: "
            "'fusejournal peer add'"
        )

    def _choose(self, book: PeerBook, *, can_be_known: bool = True) -> Peer | None:
        """Returns the peer to ask: the one that was named, or the only one with an address; None
        where it has none, or where what is to be asked is known already, and *can_be_known*. Raises
        UnknownPeerError, RejoinError where several might be meant."""
        if self._peer is not None:
            found = book.get(self._peer)
            return found if found.any_address is not None else None
        if can_be_known and load_parting(self._state.directory) is not None:
            return None
        there = [peer for peer in book.list() if peer.any_address is not None]
        if len(there) > 1:
            names = ", ".join(peer.name for peer in there)
            raise RejoinError(f"which one is the primary? --from one of {names}")
        return there[0] if there else None

    def _me(self, page: WatermarkPage, head: Position) -> HandshakeState:
        state, seen = self._state, page.fence
        identity = load_or_make(state.directory / "identity", node_name(state.name))
        return HandshakeState(
            node_name(state.name),
            state.uuid,
            head,
            seen.epoch,
            head.seq,
            seen.node_id if seen.epoch >= head.epoch else 0,
            node_id_of(identity.fingerprint),
            page.instance,
        )

    def _ask(self, page: WatermarkPage, head: Position, peer: Peer) -> Parting:
        state, me = self._state, self._me(page, head)
        identity = load_or_make(state.directory / "identity", node_name(state.name))
        inquiry = PartingInquiry(me, state.journal_dir, identity, insecure=self._insecure)
        try:
            return trio.run(inquiry.ask, peer)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        except RefusedError as error:
            if error.code is not RefusalCode.COPY:
                raise
            raise TooLittleInCommonError(f"{error}: {ANEW}") from None
        except trio.TooSlowError:
            raise RejoinError(f"peer {peer.name} said nothing for too long") from None

    # -- doing it ----------------------------------------------------------------------------------

    def run(self, reporter: Reporter, check: Check) -> Rejoined:
        """Do it. *check* may stop it by an exception, after which the same goes on. Raises
        FusejournalError, OSError."""
        if os.geteuid() != 0:
            raise PrivilegeError("a rejoin changes the backing, and needs root: try sudo")
        state = self._state
        with hold_volume(state, " (--dry-run works now)"), self._open_backing() as root_fd:
            begun = load_intent(state.directory)
            if begun is None:
                told = self._begin_any(root_fd, reporter, check)
            else:
                told = self._going_on(begun, done=True)
            if load_intent(state.directory) is not None:
                with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
                    self._change_role(page)
                self._go_through(os.dup(root_fd), reporter, check)
                self._end_whole(told)
            forget_parting(state.directory)
            return told

    def _begin_any(self, root_fd: int, reporter: Reporter, check: Check) -> Rejoined:
        """Do what comes before the intent, and write it down, if there is to be one."""
        state = self._state
        with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
            whole = self._if_new(page)
            if whole is None:
                try:
                    return self._begin(root_fd, page)
                except TooLittleInCommonError as error:
                    whole = self._copying(page, self._look(page), error)
        copied = whole.begin(root_fd, reporter, check)
        self._state = whole.state
        return self._report_whole(copied, done=True)

    def _end_whole(self, told: Rejoined) -> None:
        """Have the state directory say that its journal has a base, and pin that, where it has a
        new one."""
        if told.rung > 2:
            self._state = load_state(self._state.directory)
            save_state(self._state)
            pin_base_alone(self._state, self._config_file)

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
            return self._report(plan, None, done=True)
        parting, name = plan.parting, None
        if plan.rung > 1:
            reign = str(parting.reign)
            name = make_branch(
                state.directory, state.uuid, plan.position, head, parting.peer, reign
            ).name
        # Nothing of a lower reign comes in again.
        page.raise_fence(parting.reign)
        page.sync()
        # A primary applies before it flushes: after a crash its backing may have more.
        # (A CLEAN that was the last entry when it was opened again says nothing of what came then.)
        ends_clean = journal.ends_clean and head.seq > boot.began_seq
        may_be_ahead = not state.is_mirror and not boot.is_this and not ends_clean
        Rollback(plan.position, name, may_be_ahead).save(state.directory)
        return self._report(plan, name, done=True)

    def _go_through(self, root_fd: int, reporter: Reporter, check: Check) -> None:
        """Open the volume, which does what is left to do, and close it in order."""
        state = self._state
        page = WatermarkPage(state.watermarks, state.created_ns)
        startup = assemble_startup(
            replace(state, role=Role.MIRROR),
            root_fd,
            journal_options(self._config.journal),
            reporter,
            page,
            partial(open_base, state.directory, config=self._config.store),
        )
        startup.open(read_only=False)
        startup.recover(read_only=False, check=check)
        for _ in startup.start_epoch_and_import(read_only=False):
            pass
        startup.close()

    # -- in words ----------------------------------------------------------------------------------

    def _going_on(self, begun: Rollback | WholeSet, *, done: bool) -> Rejoined:
        """Returns the rest of a rejoin that was stopped."""
        if isinstance(begun, WholeSet):
            base, head_seq, source, reign = begun.base, begun.base.seq, None, None
            own_entries = 0
            known = {one.name: one for one in list_branches(self._state.directory)}
            if (kept := known.get(begun.branch or "")) is not None:
                head_seq, source, reign = kept.head.seq, kept.source, kept.reign
                own_entries = head_seq - kept.parted.seq
            return Rejoined(
                volume=self._state.name,
                source=source,
                reign=reign,
                rung=4 if begun.inodes is None else 3,
                parted=str(base.position),
                head_seq=head_seq,
                own_entries=own_entries,
                files=0,
                contents=0,
                branch=begun.branch,
                done=done,
                tree_seq=base.seq,
                tree_bytes=base.content_bytes,
            )
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
            parted=str(begun.position),
            head_seq=head_seq,
            own_entries=head_seq - begun.position.seq,
            files=len(losing.fids),
            contents=len(losing.contents),
            branch=begun.branch,
            done=done,
        )

    def _report(self, plan: RejoinPlan, branch: str | None, *, done: bool) -> Rejoined:
        return Rejoined(
            volume=self._state.name,
            source=plan.parting.peer,
            reign=str(plan.parting.reign),
            rung=plan.rung,
            parted=str(plan.position),
            head_seq=plan.head.seq,
            own_entries=plan.own_entries,
            files=len(plan.losing.fids),
            contents=len(plan.losing.contents),
            branch=branch,
            done=done,
        )

    def _report_whole(self, copied: CopiedTree, *, done: bool) -> Rejoined:
        version = copied.offered.version
        is_tree = version is not None and not copied.by_journal
        return Rejoined(
            volume=self._state.name,
            source=copied.source,
            reign=copied.reign,
            rung=1 if copied.by_journal else 4 if copied.is_fresh else 3,
            parted=str(Position(Epoch(0), Seq(0), 0)),
            head_seq=copied.head.seq,
            own_entries=copied.head.seq,
            files=0,
            contents=0,
            branch=copied.branch,
            done=done,
            tree_seq=version.seq if version is not None and is_tree else 0,
            tree_bytes=version.content_bytes if version is not None and is_tree else 0,
            tree_files=version.file_count if version is not None and is_tree else 0,
            fetched_bytes=copied.fetched.bytes,
            journal_bytes=copied.offered.journal_bytes if copied.by_journal else 0,
        )
