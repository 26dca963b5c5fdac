"""A node in a :class:`~tests.simulation.world.World`: its process, its roles, its crashes."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import trio

from fusejournal.address import node_name
from fusejournal.admin.rejoin import RejoinRequest
from fusejournal.config import Config, ReplicationConfig
from fusejournal.control.server import Command
from fusejournal.errors import FusejournalError
from fusejournal.journal.branches import list_branches
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node import start
from fusejournal.node.handoffs import Handoffs, learn_outcome, make_take_over
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import VolumeState, change_role, load_state, save_state
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.member_record import MEMBERS_FILE
from fusejournal.replication.parting import PartingInquiry
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.demote import Demotion
from fusejournal.roles.promote import Promotion
from fusejournal.roles.rejoin import RejoinError
from fusejournal.roles.role import Event, Role
from fusejournal.types import Reign, Seq, reign_of_text
from fusejournal.volume.rollback import REJOIN_FILE
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.session import HandshakeState
from tests.simulation.owner import Noting, SimulatedRole
from tests.simulation.world import Died, at, current
from tests.support.losses import crash_system
from tests.support.pairs import running
from tests.support.reigns import last_epoch_seq
from tests.support.volumes import OpenVolume, open_volume

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

_DURABLE: Final = slice(24, 32)
_FENCE: Final = slice(40, 56)
_ROOTED: Final = slice(64, 72)
"""The places of these in a page of watermarks."""
_ASKING_SECONDS: Final = 3.0
_OUTCOME_SECONDS: Final = 30.0
_REJOIN_SECONDS: Final = 30.0
_OVERRULE: Final = re.compile(r'overrule = "(\S+)"')


class Node:
    """One node, whose process may live or not."""

    def __init__(self, cluster: "Cluster", name: str, *, is_mirror: bool) -> None:
        self.cluster = cluster
        self.name = name
        self._has_asked = False
        self.machine = cluster.world.machine(name)
        self.directory = cluster.base / name
        self.state_dir = self.directory / "state"
        self.state_dir.mkdir(parents=True)
        (self.directory / "mount").mkdir()
        self.machine.page = self.state_dir / "watermarks"
        places = (self.directory / "backing").resolve(), self.directory / "mount"
        role = Role.MIRROR if is_mirror else Role.PRIMARY
        self.record = VolumeState(self.state_dir, UUID(int=1), name, *places, 0, role)
        """The record of its role, as its process knows it; the file has it, too."""
        save_state(self.record)
        self.side: OpenVolume | None = None
        """While it is up."""
        self.refusal = ""
        """The reason why its last start was refused."""
        self.could_begin = ""
        """The reign that its start has said it may be told to begin alone."""
        self.waits_for_peers = False
        """True if its start has heard of none."""
        self._goes_on_without_peers = False
        self._rejoins_from = 0.0
        self._begin_alone: str | None = None
        self._overrule: str | None = None
        self._commands: dict[str, Command] = {}
        """Those of handoffs, while it is up."""
        self._scope: trio.CancelScope | None = None
        self._stopping = trio.Event()
        self._over = trio.Event()

    # -- a process ---------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """True while it has a process."""
        return self._scope is not None

    @property
    def is_mirror(self) -> bool:
        """True if that is its role, in which its next process begins."""
        return self.record.is_mirror

    @property
    def reign(self) -> Reign | None:
        """The one that its role came with."""
        return self.record.reign

    def start(self) -> None:
        """Begin a process, unless there is one."""
        if self._scope is None:
            self.record = load_state(self.state_dir)
            self._scope, self._over = trio.CancelScope(), trio.Event()
            self._stopping = trio.Event()
            self.machine.boot()
            self.machine.scope = self._scope
            self.cluster.world.note(f"{self.name} starts")
            self.cluster.nursery.start_soon(self._live)

    async def _live(self) -> None:
        current.set(self.machine)
        assert self._scope is not None
        next_role = None
        try:
            with self._scope:
                next_role = await self._serve()
                if next_role is not None and next_role[0] is Event.DEMOTED:
                    self.record = change_role(self.record, *next_role)
        except* Died:
            next_role = None
        except* (FusejournalError, OSError) as group:
            next_role = None
            if not self.machine.is_dead:
                self.refusal = str(first_error(group))
                self.cluster.world.note(f"{self.name} is refused: {self.refusal}")
        finally:
            self.side = self._scope = self.machine.scope = None
            self._commands = {}
            self._over.set()
        if next_role is not None:
            event, reign = next_role
            self._has_asked = event is Event.PROMOTED
            self.cluster.world.note(
                f"{self.name} goes on by a handoff: {event.value} {reign.epoch}"
            )
            self.start()

    async def _serve(self) -> tuple[Event, Reign] | None:
        """Returns the role to go on in, where it does not stop."""
        is_mirror = self.is_mirror
        with open_volume(self.directory, mirror=is_mirror, orderly=False, begin=is_mirror) as side:
            config = ReplicationConfig(
                mirrors=self.cluster.mirrors_wanted,
                on_timeout="block",
                take_back_seconds=_ASKING_SECONDS,
                without_peers="wait" if self._waits_for_peers() else "new-epoch",
                begin_alone=self._begin_alone,
                overrule=self._overrule,
            )
            self._know_peers()
            side.replicate(config, str(self.machine.address), reign=self.reign)
            hooks = RoleHooks(
                MountSpec(
                    *(self.name, self.state_dir, self.record.backing, self.record.mountpoint),
                    *(Config(), False, frozenset()),
                )
            )
            role = SimulatedRole(self, side, hooks)
            taken = None
            if is_mirror:
                side.take_over = make_take_over(role, side.opening, side.replication, side.receiver)
            else:
                taken = await self._begin(side, role)
            async with running(side), trio.open_nursery() as tasks:
                handoffs = Handoffs(role, side.opening, side.replication, lambda: None, tasks)
                self._commands = handoffs.commands()
                self.side, self.refusal = side, ""
                self._goes_on_without_peers = False
                if taken is not None:
                    role.end_in(Event.DEMOTED, taken)
                try:
                    await self._stopping.wait()
                finally:
                    self._commands = {}  # a process that ends is asked nothing more
                self.side = None
                tasks.cancel_scope.cancel()
            side.orderly = True
        return role.next

    def _waits_for_peers(self) -> bool:
        return self.cluster.waits_for_peers and not self._goes_on_without_peers

    def leave(self) -> None:
        """End its process in an orderly way, soon."""
        self._stopping.set()

    def _know_peers(self) -> None:
        book = PeerBook.load(self.state_dir)
        if book.list():
            return
        for other in self.cluster.nodes:
            if other is not self:
                key = load_or_make(other.state_dir / "identity", node_name(other.name))
                address = None if self.is_mirror else other.machine.address
                book.pair(other.name, address, key.certificate)
                book.note_return(other.name, other.machine.address)
        book.save()

    async def _begin(self, side: OpenVolume, role: SimulatedRole) -> Reign | None:
        """Begins as a primary's start does (node/start.py), and with that replication again.
        Returns the reign that was taken over meanwhile."""
        opening, local = side.opening, side.replication.local
        parts: Any = SimpleNamespace(startup=opening, local=local, role=Role.PRIMARY)
        taken = await learn_outcome(role, opening, local, Noting(self).warning)
        standing = await start._ask_peers(Noting(self), parts, has_asked=self._has_asked)
        self._has_asked = False
        opening.recover(read_only=False, held_seq=standing.held_seq)
        for _ in opening.start_epoch_and_import(read_only=False, standing=standing):
            pass
        side.replicate(local.config, str(self.machine.address), reign=self.reign)
        return taken

    # -- roles -------------------------------------------------------------------------------------

    async def promote(self, *, force: bool = False) -> bool:
        """Make this mirror the primary, if nothing speaks against it, or by force. Returns whether
        it is."""
        side, world = self.side, self.cluster.world
        if side is None or not self.is_mirror or side.opening.is_uninitialized:
            return False
        promotion = Promotion(self.name, side.volume, side.replication, side.receiver)
        with at(self.machine):
            try:
                plan = await promotion.prepare(force=force)
                with trio.fail_after(100):
                    await promotion.apply_all()
                promotion.check_reign(reign_of_text(plan.reign))
            except (FusejournalError, OSError, Died, trio.TooSlowError) as error:
                world.note(f"{self.name} is not promoted: {error}")
                return False
        if self.side is not side:
            return False
        self.cluster.was_forced |= bool(plan.objections) or not plan.is_covered
        await self.stop()
        reign = reign_of_text(plan.reign)
        self.record, self._has_asked = change_role(self.record, Event.PROMOTED, reign), True
        world.note(f"{self.name} is promoted to {reign.epoch}")
        self.start()
        return True

    async def demote(self) -> bool:
        """Make this primary a mirror, once its mirrors have everything, or where another reigns.
        Returns whether it is."""
        side = self.side
        if side is None or side.watermarks is not None:
            return False
        demotion = Demotion(side.volume, side.replication)
        with at(self.machine):
            try:
                reign = await demotion.prepare(force=False, timeout_seconds=5.0)
            except (FusejournalError, OSError, Died) as error:
                self.cluster.world.note(f"{self.name} is not demoted: {error}")
                return False
        if self.side is not side:
            return False
        side.becomes_mirror = True
        await self.stop()
        self.record = change_role(self.record, Event.DEMOTED, reign)
        self.cluster.world.note(f"{self.name} is demoted")
        self.start()
        return True

    async def hand_over(self, other: "Node", seconds: float) -> bool:
        """Hand this primary's reign over to *other*, which may take so many seconds. Returns False
        where that is known to have come to nothing. An admin does not wait for ever to hear what
        has: a target that is gone tells it once it is back."""
        name, commands = self.name, self._commands
        if not commands:
            return False
        try:
            with at(self.machine):
                told = await commands["handoff"]({"peer": other.name, "timeout_seconds": seconds})
            with trio.move_on_after(seconds + _OUTCOME_SECONDS):
                while not told["is_over"] and self._commands is commands:
                    await trio.sleep(0.01)
                    told = await commands["handoff-progress"]({})
        except FusejournalError as error:
            self.cluster.world.note(f"{name} is not handed over: {error}")
            return False
        self.cluster.world.note(f"{name} to {other.name}: {told['stage']} {told['reason']}")
        return told["reason"] is None

    async def overrule(self) -> None:
        """Have this primary go on where mirrors have given their vote for a reign that never began,
        as the advice on them says; and nothing where none has."""
        side = self.side
        if side is None or self.is_mirror or side.replication.quorum.is_fenced:
            return
        peers = side.replication.status().peers
        named = [_OVERRULE.search(peer.advice or "") for peer in peers]
        reigns = [reign_of_text(one[1]) for one in named if one is not None]
        if reigns:
            self._overrule = str(max(reigns))
            self.cluster.world.note(f"{self.name} overrules {self._overrule}")
            await self.stop()
            self.start()

    async def begin_alone(self) -> None:
        """Do as its start has advised: no other was promoted."""
        await self.kill()
        self._begin_alone, self.could_begin = self.could_begin, ""
        self.cluster.world.note(f"{self.name} may begin {self._begin_alone} alone")
        self.start()

    async def go_on_without_peers(self) -> None:
        """Do as its start has advised: each of the others is a primary that waits, too."""
        await self.kill()
        self._goes_on_without_peers, self.waits_for_peers = True, False
        self.cluster.world.note(f"{self.name} goes on without peers")
        self.start()

    async def ask_where_parted(self) -> None:
        """Have it noted where this node's journal parts from the present primary's."""
        page = WatermarkPage(self.state_dir / "watermarks")
        identity = load_or_make(self.state_dir / "identity", node_name(self.name))
        journal = RejoinRequest(self._state(), None, None, insecure=True)._look(page)
        me = HandshakeState(
            *(node_name(self.name), self._state().uuid, journal, page.fence.epoch, journal.seq),
            *(page.fence.node_id, node_id_of(identity.fingerprint), page.instance),
        )
        page.close()
        inquiry = PartingInquiry(me, self.state_dir / "journal", identity, insecure=True)
        book = PeerBook.load(self.state_dir)
        others = [node for node in self.cluster.nodes if node is not self and node.side is not None]
        for other in sorted(others, key=lambda node: node.is_mirror):
            with at(self.machine), suppress(FusejournalError, OSError, trio.TooSlowError):
                self.machine.boot()
                (await inquiry.ask(book.get(other.name))).keep(self.state_dir)
                return

    def _state(self) -> VolumeState:
        """The state that commands go by."""
        return replace(self.record, uuid=UUID((self.state_dir / "uuid").read_text()))

    async def stop(self) -> None:
        """An orderly stop."""
        self._stopping.set()
        with trio.move_on_after(600) as waiting:
            await self._over.wait()
        if waiting.cancelled_caught:
            await self.kill()

    async def kill(self) -> None:
        """Kills the process alone."""
        if self._scope is not None:
            self.machine.die()
            await self._over.wait()

    async def crash(self, older: int = 0) -> None:
        """Crashes the machine: what was not flushed is lost, from some entry on; *older*: and so
        many entries that were, as where an older copy of its disk takes its place."""
        dice = self.cluster.world.dice
        side = self.side
        span = None
        if side is not None and side.volume.journal.head_seq:
            journal = side.volume.journal
            span = journal.durable_seq, journal.head_seq
        await self.kill()
        if self.machine.synced_page and self.machine.page is not None:
            self.machine.page.write_bytes(self.machine.synced_page)
        if not (self.state_dir / "boot").exists():
            return
        reader = JournalReader(self.state_dir / "journal")
        if not reader.segments() or (self.state_dir / REJOIN_FILE).exists():
            return
        head_seq, _ = reader.head()
        if not head_seq:
            return
        first, last = span if span is not None else (head_seq, head_seq)
        kept_seq = Seq(min(head_seq, dice.randint(max(1, first), max(1, last))))
        if older:
            # (One from before its own reign is fenced for good: by its own page, or by its peers.)
            floor = Seq(1) if self.is_mirror else min(kept_seq, last_epoch_seq(reader))
            kept_seq = max(Seq(kept_seq - older), floor)
            self.cluster.put_back(self, kept_seq)
            self._put_back_page(kept_seq)
            if self.is_mirror:
                # Of what it lacks nothing is in the backing, which is on the same disk; what it has
                # comes from the journal, as after any crash.
                for path in (self.directory / "backing").iterdir():
                    path.unlink()
        self.cluster.world.note(f"{self.name} loses {kept_seq + 1} to {head_seq}")
        crash_system(self.state_dir, kept_seq)
        assert self.machine.page is not None
        self.machine.synced_page = self.machine.page.read_bytes()

    def _put_back_page(self, kept_seq: Seq) -> None:
        """Has the page and the record of members be as they were when the disk had nothing after
        *kept_seq*; but as they were after the last vote that was given: no vote outlives a voter
        who forgets it."""
        path = self.machine.page
        assert path is not None
        given = path.read_bytes()[_FENCE]
        for page, members in reversed(self.machine.older):
            if page[_FENCE] != given:
                return
            path.write_bytes(page[: _ROOTED.start] + bytes(8) + page[_ROOTED.stop :])
            if members is None:
                (path.parent / MEMBERS_FILE).unlink(missing_ok=True)
            else:
                (path.parent / MEMBERS_FILE).write_bytes(members)
            if int.from_bytes(page[_DURABLE], "little") <= kept_seq:
                return

    # -- rejoining ---------------------------------------------------------------------------------

    def rejoin(self, dies_in: int | None = None) -> None:
        """Bring it level while it is down; killed after so many calls of the disk. Where that is
        refused, because no node of the highest reign that it knows of has told where the two part,
        it is tried again once one may have."""
        before = chains(self.state_dir / "journal")
        had_begun = (self.state_dir / REJOIN_FILE).exists()
        self.machine.boot()
        self.machine.dies_in = dies_in
        with at(self.machine):
            try:
                request = RejoinRequest(self._state(), None, None, insecure=True)
                told = request.run(Noting(self), lambda: None)
                self.cluster.world.note(f"{self.name} rejoins at {told.parted}")
            except Died:
                self.cluster.world.note(f"{self.name} dies as it rejoins")
            except RejoinError as error:
                self.cluster.world.note(f"{self.name} does not rejoin: {error}")
                self._rejoins_from = trio.current_time() + _REJOIN_SECONDS
            self.record = load_state(self.state_dir)
        self.machine.boot()
        if not had_begun:
            kept = chains(self.state_dir / "journal")
            for branch in list_branches(self.state_dir):
                kept |= chains(branch.directory)
            assert before <= kept, "an entry that lost is in no branch"

    @property
    def is_gone_by(self) -> bool:
        """True of a primary whose system crashed and that no start makes a mirror, while another
        was promoted after it: it is refused, or waits for votes that it does not get."""
        is_old = self is not self.cluster.newest or "fenced" in self.refusal
        return is_old and not self.is_mirror and self.side is None

    @property
    def held_seq(self) -> Seq:
        """The end of its journal; 0 where it is down."""
        return self.side.volume.journal.head_seq if self.side is not None else Seq(0)

    @property
    def has_parted(self) -> bool:
        """True if it is up and says so, and a rejoin was not refused just before."""
        is_due = trio.current_time() >= self._rejoins_from
        if self.side is None or not self.is_mirror or not is_due:
            return False
        status = self.side.replication.status().mirror
        return status is not None and status.state == "diverged"


def chains(directory: Path) -> set[tuple[int, int]]:
    """Each entry of the segments in *directory* by its seq and chain."""
    reader = JournalReader(directory)
    if not reader.segments():
        return set()
    return {(frame.seq, frame.checksum) for _, frame in reader.frames(Seq(1), END)}
