"""A hypothesis state machine over a primary and its mirror, between which a third lies: it plays
either side, says what was true once or nearly is, or sits on the line and changes, loses and
repeats what passes. Both volumes are stopped in order and killed, too; the primary's system
crashes, with all gone that was not on its disk, and is cloned.

Whatever was said, the mirror's journal is a beginning of the primary's, byte for byte, and its
backing what that means; the primary's own is what it was; nothing of it is a bug of theirs; and the
true ones find each other again: then journal, mirror and replay are what the primary's backing is.
After a loss the primary's journal is a beginning of what it was, and has what was on the disk, and
all that the mirror had where it can be reached, no matter which other peer answers. Of a machine
and its clone one is followed, and the other neither ships nor, where an epoch has begun, takes a
change.

``FUSEJOURNAL_MODEL_LIVES`` says how many runs to make (8 by default)."""

import logging
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from fusejournal.address import Address, node_name, parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import TreeOperation
from fusejournal.replication import fetch_lost, shipper
from fusejournal.replication.inquiry import ask_peers
from fusejournal.replication.parting import load_parting
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Caller, Seq
from fusejournal.volume.standing import Standing
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.frames import Hello
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import FETCH, SHIP, RefusedError
from tests.model.meaning import model_of
from tests.support.bad_line import Line
from tests.support.bugs import Bugs
from tests.support.disks import SmallDisk
from tests.support.liar import Liar, answering, each_session
from tests.support.pairs import level, listens_at, mirror_status, peer_status, running, until
from tests.support.random_workloads import Builder, Dice
from tests.support.reigns import last_epoch_seq
from tests.support.trees import difference, image
from tests.support.users import own_mounts
from tests.support.volumes import OpenVolume, check_copies, content, open_volume
from tests.support.workload import Workload, workspace

pytestmark = pytest.mark.mount

_ASKED = "FUSEJOURNAL_MODEL_LIVES" in os.environ
_ROLLS = st.binary(min_size=12, max_size=12)
_WORK = st.lists(_ROLLS, min_size=1, max_size=12)
_SEEDS = st.integers(0, 1 << 16)
_IN_ORDER = st.booleans()
_LIES_SECONDS = 0.3
_ASKING_SECONDS = 2.0
_SEQ_MAX = Seq(1 << 40)


class Peers(RuleBasedStateMachine):
    """The lives of a primary and a mirror."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="fusejournal-peers."))
        self.base.chmod(0o755)
        self._builder = Builder(Workload())
        self._stack = ExitStack()
        self._images = self._stack.enter_context(workspace())
        self._clones = 0
        self.disk = SmallDisk(self._images / "disk", self.base / "disk", 96)
        """The primary's."""
        self._unsigned_seq = Seq(0)
        """Up to here the mirror's journal may have come from the liar."""
        self._volumes: dict[str, ExitStack] = {}
        self.bugs = Bugs()
        logger = logging.getLogger("fusejournal")
        logger.addHandler(self.bugs)
        self._stack.callback(logger.removeHandler, self.bugs)
        self._open()
        trio.run(self._ship)

    # -- the two -----------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        return (self.base if name == "mirror" else self.disk.mountpoint) / name

    def _enter(self, name: str, place: Path | None = None, *, begin: bool = True) -> OpenVolume:
        stack = self._volumes[name] = ExitStack()
        volume = open_volume(place or self._place(name), mirror=name == "mirror", begin=begin)
        return stack.enter_context(volume)

    def _open(self) -> None:
        self.mirror, self.primary = self._enter("mirror"), self._enter("primary")
        self._builder.model = model_of(self.primary.journal_dir)
        self._check()

    def _check(self) -> None:
        """Checks what must hold at any time."""
        assert self.bugs.found == []
        for side in (self.mirror, self.primary):
            assert side.volume.failure is None
        true, copy = content(self.primary.journal_dir), content(self.mirror.journal_dir)
        assert all(true.get(name, b"").startswith(segment) for name, segment in copy.items())
        assert not (found := self._unlike_model()), found

    def _unlike_model(self) -> str:
        """Returns in words how the primary's backing is not what it has answered."""
        return difference(image(self.primary.backing), self._builder.model.image())

    @rule(primary_in_order=_IN_ORDER, mirror_in_order=_IN_ORDER)
    def stop_and_open(self, primary_in_order: bool, mirror_in_order: bool) -> None:
        before = self._builder.model.image()
        self.primary.orderly, self.mirror.orderly = primary_in_order, mirror_in_order
        for name in ("primary", "mirror"):
            self._volumes[name].close()
        self._open()
        assert not (found := difference(before, self._builder.model.image())), found

    @rule(rolls=_WORK)
    def work(self, rolls: list[bytes]) -> None:
        volume, builder = self.primary.volume, self._builder
        for one in rolls:
            builder.next_fid = volume.new_fid()
            made = builder.tree_operation(Dice(one))
            if made is None or not isinstance(made[0], TreeOperation):
                continue
            with suppress(OSError):
                volume.commit(made[0], Caller(1000, 1000, 77), made[1])
                builder.model.apply(made[0], volume.journal.last_time_ns, made[1])

    # -- what is true ------------------------------------------------------------------------------

    def _listening(self, side: OpenVolume) -> None:
        self._forget_peers()
        side.replicate(ReplicationConfig(), "127.0.0.1:0")

    async def _ship(self) -> None:
        """The true ones come level."""
        self._listening(self.mirror)
        async with running(self.mirror):
            await self._come_level(listens_at(self.mirror))

    async def _come_level(self, address: str) -> None:
        self.primary.replicate(ReplicationConfig(peers={"east": address}))
        async with running(self.primary):
            await until("the mirror is level", level(self.primary, self.mirror))

    def _know(self, name: str, other: str, address: Address | None) -> None:
        """Pair *name* with *other*, which it reaches at *address* (None: not at all)."""
        identity = load_or_make(self._place(other) / "state" / "identity", node_name(other))
        book = PeerBook.load(self._place(name) / "state")
        book.pair(other, address, identity.certificate)
        book.save()

    def _forget_peers(self) -> None:
        """There is no pair any more."""
        for name in ("mirror", "primary"):
            (self._place(name) / "state" / "peers.json").unlink(missing_ok=True)

    def _check_level(self) -> None:
        self._check()
        assert content(self.primary.journal_dir) == content(self.mirror.journal_dir)
        assert not (found := difference(image(self.mirror.backing), self._model())), found

    def _model(self) -> dict[bytes, dict[str, object]]:
        return self._builder.model.image()

    @rule()
    def ship(self) -> None:
        trio.run(self._ship)
        self._check_level()

    # -- what is not -------------------------------------------------------------------------------

    @rule(seed=_SEEDS, is_level=st.booleans())
    def lie_to_the_mirror(self, seed: int, is_level: bool) -> None:
        """The liar says that it is the primary; *is_level*: the primary comes after it."""
        liar = Liar(self.primary, seed)

        def greeting() -> Hello:
            hello, head = liar.hello(liar.dice.choice((SHIP, SHIP, FETCH))), self.mirror.volume
            if liar.dice.random() < 0.7:
                return hello._replace(seq=head.journal.head_seq, chain=head.journal.chain)
            return hello

        async def lie() -> None:
            self._listening(self.mirror)
            head_seq = self.mirror.volume.journal.head_seq
            async with running(self.mirror):
                await each_session(lambda: listens_at(self.mirror), liar, 3, greeting)
                if self.mirror.volume.journal.head_seq > head_seq:
                    self._unsigned_seq = self.mirror.volume.journal.head_seq
                if is_level:
                    await self._come_level(listens_at(self.mirror))

        trio.run(lie)
        if is_level:
            self._check_level()
        self._check()

    @rule(seed=_SEEDS)
    def lie_to_the_primary(self, seed: int) -> None:
        """The liar calls it, and says that it is a primary or lost its entries."""
        liar = Liar(self.primary, seed)
        before = content(self.primary.journal_dir)

        async def lie() -> None:
            self._listening(self.primary)
            async with running(self.primary):
                first = partial(liar.hello, liar.dice.choice((SHIP, FETCH)))
                await each_session(lambda: listens_at(self.primary), liar, 3, first)

        trio.run(lie)
        self._check()
        assert content(self.primary.journal_dir) == before
        assert self.primary.volume.write_errno is None

    @rule(seed=_SEEDS)
    def answer_with_lies(self, seed: int) -> None:
        """The liar says that it is the mirror."""
        liar = Liar(self.primary, seed)
        before = content(self.primary.journal_dir)

        async def lie() -> None:
            self._forget_peers()
            async with trio.open_nursery() as nursery:
                with trio.fail_after(30):
                    address = await nursery.start(answering, self.base, liar, 2)
                    peers = {"west": str(address)}
                    replication = self.primary.replicate(ReplicationConfig(peers=peers))
                    async with running(self.primary):
                        await trio.sleep(_LIES_SECONDS)
                acked_seq = replication.local.book.get("west").acked_seq
                assert acked_seq <= self.primary.volume.journal.head_seq
                nursery.cancel_scope.cancel()

        trio.run(lie)
        self._check()
        assert content(self.primary.journal_dir) == before
        assert self.primary.volume.write_errno is None

    @rule(seed=_SEEDS, wrongs=st.sampled_from((1, 2, 5)), rolls=st.lists(_ROLLS, max_size=8))
    def ship_over_a_bad_line(self, seed: int, wrongs: int, rolls: list[bytes]) -> None:
        self.work(rolls)

        async def ship() -> None:
            self._forget_peers()
            self._know("mirror", "primary", None)
            self.mirror.replicate(ReplicationConfig(), "127.0.0.1:0", insecure=False)
            async with (
                running(self.mirror),
                Line(listens_at(self.mirror), seed, wrongs).laid() as address,
            ):
                self._know("primary", "mirror", parse_address(address))
                self.primary.replicate(ReplicationConfig(), insecure=False)
                async with running(self.primary):
                    await until("the mirror is level", level(self.primary, self.mirror))

        trio.run(ship)
        self._check_level()

    # -- machines that are lost --------------------------------------------------------------------

    def _end(self, name: str, *, in_order: bool = False) -> None:
        """The volume ends, also where its disk is gone."""
        opened = self.mirror if name == "mirror" else self.primary
        opened.orderly = in_order
        with suppress(FusejournalError, OSError):
            self._volumes[name].close()

    def _chains(self) -> list[int]:
        """The checksum of each entry of the primary, by seq."""
        reader = JournalReader(self.primary.journal_dir)
        return [0, *(frame.checksum for _, frame in reader.frames(Seq(1), _SEQ_MAX))]

    async def _begin(self, side: OpenVolume, peers: dict[str, str]) -> str:
        """Begins as a node does with the volume that it has opened: asks *peers*, all of which have
        kept signatures, and begins. Returns what went wrong. Raises RefusedError after a loss."""
        opening = side.opening
        book = PeerBook(side.directory / "state")
        for name, address in peers.items():
            book.add(name, parse_address(address))
            book.note_signatures(name)
        book.save()
        replication = side.replicate(ReplicationConfig(take_back_seconds=_ASKING_SECONDS))
        try:
            taken = await ask_peers(
                replication.local,
                side.volume.journal,
                lambda _: None,
                system_crash=opening.system_crash,
            )
        except RefusedError as error:
            if opening.system_crash:
                raise
            words = str(error)
            standing = Standing(Trouble(TroubleKind.FENCED, words))
        else:
            words = "; ".join(map(str, taken.failures))
            highest = replication.local.fence.highest_epoch
            standing = Standing(None, highest, taken.new_epoch, taken.held_seq)
        opening.recover(read_only=False, held_seq=standing.held_seq)
        for _ in opening.start_epoch_and_import(read_only=False, standing=standing):
            pass
        return words

    @rule(
        seed=_SEEDS,
        rolls=_WORK,
        ships=st.booleans(),
        there=st.sampled_from((("mirror",), ("mirror",), ("liar", "mirror"), ("liar",), ())),
    )
    def lose_the_machine(
        self, seed: int, rolls: list[bytes], ships: bool, there: tuple[str, ...]
    ) -> None:
        """The primary's; when it starts again, it reaches those who are *there*."""
        self.work(rolls)
        if ships:
            trio.run(self._ship)
        liar, before = Liar(self.primary, seed), self._chains()
        durable_seq = self.primary.volume.journal.durable_seq
        mirror_seq = self.mirror.volume.journal.head_seq
        self.disk.lose()
        self._end("primary")
        self.disk.close_all()
        self.disk.come_back()
        self.primary = self._enter("primary", begin=False)
        assert self.primary.opening.system_crash
        trio.run(self._begin_after_loss, liar, there)
        epoch_seq = last_epoch_seq(JournalReader(self.primary.journal_dir))
        assert self._chains()[:epoch_seq] == before[:epoch_seq]
        assert epoch_seq > durable_seq
        if "mirror" in there and self._unsigned_seq <= durable_seq:
            assert epoch_seq > mirror_seq
        self._builder.model = model_of(self.primary.journal_dir)
        if epoch_seq <= mirror_seq:
            trio.run(self._part)
            self._begin_the_mirror_anew()
        self._check()

    async def _begin_after_loss(self, liar: Liar, there: tuple[str, ...]) -> None:
        self._listening(self.mirror)
        peers = {}
        async with running(self.mirror), trio.open_nursery() as nursery:
            if "mirror" in there:
                peers["east"] = listens_at(self.mirror)
            if "liar" in there:
                peers["west"] = str(await nursery.start(answering, self.base, liar, 9))
            await self._begin(self.primary, peers)
            nursery.cancel_scope.cancel()

    async def _part(self) -> None:
        """The mirror has entries that the primary lost: both say so, and it keeps them."""
        self._listening(self.mirror)
        async with running(self.mirror):
            peers = {"east": listens_at(self.mirror)}
            self.primary.replicate(ReplicationConfig(peers=peers))
            async with running(self.primary):
                await until("one hears", lambda: peer_status(self.primary).state == "diverged")
                await until("the other", lambda: mirror_status(self.mirror).state == "diverged")
        assert load_parting(self.mirror.directory / "state") is not None

    def _begin_the_mirror_anew(self) -> None:
        """Begins the mirror anew, as both have said."""
        self._end("mirror", in_order=True)
        shutil.rmtree(self._place("mirror"))
        self.mirror = self._enter("mirror")
        self._unsigned_seq = Seq(0)

    # -- machines that are cloned ------------------------------------------------------------------

    @rule(
        rolls=_WORK,
        is_flushed=st.booleans(),
        is_there=st.booleans(),
        in_order=_IN_ORDER,
    )
    def clone(self, rolls: list[bytes], is_flushed: bool, is_there: bool, in_order: bool) -> None:
        """The primary's machine, while it runs; the clone starts while that *is_there* or in its
        place."""
        trio.run(self._ship)
        if is_flushed or self._unsigned_seq > self.primary.volume.journal.durable_seq:
            self.disk.flush()
        self._clones += 1
        name = f"clone{self._clones}"
        disk = self.disk.clone(self._images / name, self.base / name)
        try:
            if is_there:
                trio.run(self._clone_beside, disk.mountpoint / "primary", rolls)
            else:
                trio.run(self._clone_instead, disk, rolls, in_order)
        finally:
            if self.disk is not disk:
                disk.close_all()
                disk.remove()
        assert load_parting(self.mirror.directory / "state") is None
        self._check()

    async def _clone_beside(self, place: Path, rolls: list[bytes]) -> None:
        """It is refused, by name, also when it comes again; no other node is troubled by it."""
        self._listening(self.mirror)
        async with running(self.mirror):
            address = listens_at(self.mirror)
            self.primary.replicate(ReplicationConfig(peers={"east": address}))
            async with running(self.primary):
                await until("it streams", lambda: mirror_status(self.mirror).state == "streaming")
                clone = self._enter("clone", place, begin=False)
                assert "runs twice" in await self._begin(clone, {"east": address})
                clone.work(2, start=10**6 * self._clones)
                await self._be_refused(clone)
                self.work(rolls)
                await until("the mirror is level", level(self.primary, self.mirror))
                assert peer_status(self.primary).sessions == 1
            clone.orderly = False
            self._volumes["clone"].close()
            clone = self._enter("clone", place, begin=False)
            await self._begin(clone, {"east": address})
            await self._be_refused(clone)
            self._volumes["clone"].close()

    async def _be_refused(self, clone: OpenVolume) -> None:
        async with running(clone):
            await until("it is refused", lambda: "runs twice" in str(peer_status(clone).last_error))
            assert peer_status(clone).state == "refused"

    async def _clone_instead(self, disk: SmallDisk, rolls: list[bytes], in_order: bool) -> None:
        """It is followed; the other one is fenced when it comes back, and stays so."""
        self.work(rolls)
        original, before = self.primary.directory, image(self.primary.backing)
        self._end("primary", in_order=in_order)
        self._listening(self.mirror)
        async with running(self.mirror):
            address = listens_at(self.mirror)
            clone = self._enter("clone", disk.mountpoint / "primary", begin=False)
            await self._begin(clone, {"east": address})
            clone.work(2, start=10**6 * self._clones)
            async with running(clone):
                await until("the mirror is level", level(clone, self.mirror))
            for peers in ({"east": address}, {}):
                self.primary = self._enter("primary", original, begin=False)
                assert "fenced" in await self._begin(self.primary, peers)
                assert self.primary.volume.write_errno is not None
                with pytest.raises(OSError, match="Read-only"):
                    self.primary.mkdir("of a copy")
                self._end("primary")
                assert not (found := difference(image(original / "backing"), before)), found
        self.disk.close_all()
        self.disk.remove()
        self.disk, self.primary = disk, clone
        self._volumes["primary"] = self._volumes.pop("clone")
        self._builder.model = model_of(clone.journal_dir)

    def teardown(self) -> None:
        try:
            trio.run(self._ship)
            self._check_level()
            copies = self.base / "copies"
            copies.mkdir()
            check_copies(self._place("primary"), self.primary.volume.journal.uuid, copies)
        finally:
            for stack in self._volumes.values():
                with suppress(FusejournalError, OSError):
                    stack.close()
            self.disk.close_all()
            self.disk.remove()
            self._stack.close()
            shutil.rmtree(self.base)


def test_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_SECONDS_MIN", "_PAUSE_SECONDS_MAX", "_REFUSED_SECONDS"):
        monkeypatch.setattr(shipper, name, 0.02)
    monkeypatch.setattr(fetch_lost, "_PAUSE_SECONDS", 0.05)
    with own_mounts():
        run_state_machine_as_test(
            Peers,
            settings=settings(
                max_examples=int(os.environ.get("FUSEJOURNAL_MODEL_LIVES", "8")),
                stateful_step_count=15,
                deadline=None,
                derandomize=not _ASKED,
                database=None,
                phases=(Phase.generate, Phase.shrink) if _ASKED else (Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )
