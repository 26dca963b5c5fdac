"""A hypothesis state machine over the lives of a volume: it works, is refused by its disk, stops in
order or not, loses its machine; an admin puts older copies of its state or its backing back, or
mixes both up.

There is no mount here, so that many lives can be lived; the code that opens, recovers, applies and
closes is the product's own. A model in memory says what the tree is after each entry. Whatever was
done, the next opening either refuses, in one line and with nothing changed, or it goes on; then

- the backing is what the journal says, to the nanosecond, and no fid means two files;
- a volume that reports neither a repair nor a degradation has exactly the tree and the head that
  it had;
- what the backing had is not gone: each content is in it still, or was kept aside.

``FUSEJOURNAL_MODEL_LIVES`` says how many runs to make (20 by default)."""

import errno
import os
import random
import shutil
import tempfile
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from uuid import UUID

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, ShortWriteError
from fusejournal.operations import ControlOperation, TreeOperation
from fusejournal.types import Caller, Seq
from tests.model.copies import Copies, aside, contents_of, copy_tree, rsync_tree
from tests.model.meaning import model_of
from tests.support.losses import begin_another_boot, crash_system, failing_at
from tests.support.model import Model, Refused
from tests.support.random_workloads import Builder, Dice
from tests.support.trees import Image, difference, image
from tests.support.volumes import OpenVolume, check_copies, open_volume
from tests.support.workload import Workload

_ASKED = "FUSEJOURNAL_MODEL_LIVES" in os.environ
_STEPS = 40
_ROLLS = st.binary(min_size=12, max_size=12)
_SEQ_MAX = Seq(1 << 40)


def refusing(label: str, number: int, count: int) -> AbstractContextManager[list[int]]:
    """The *count*'th storage call whose label begins with *label* fails with errno *number*."""
    return failing_at(label, count, OSError(number, os.strerror(number)))


class Lives(RuleBasedStateMachine):
    """The lives of one volume."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="fusejournal-lives."))
        self.base.chmod(0o755)
        self.volume = self.base / "volume"
        self.places = self._make_places()
        self.copies = Copies(self.base)
        self.opened: OpenVolume | None = None
        self.is_blind = False
        """True if changes were made that the model has not seen."""
        self.has_stopped = True
        """True if the last stop in order was one."""
        self._context: AbstractContextManager[OpenVolume] | None = None
        self._builder = Builder(Workload())
        self._owners: dict[int, int] = {}
        self.other = self.base / "other"
        with open_volume(self.other) as other:
            other.work(3)
        self._open(expect_quiet=False)

    def _make_places(self) -> dict[str, Path]:
        """Makes state and backing where they really are: the volume's directory may have links to
        them."""
        return {name: self.volume / name for name in ("state", "backing")}

    def _leave_places(self) -> None:
        """They are about to be removed."""

    def _have_room(self) -> None:
        """An admin is about to copy something."""

    def _flush(self) -> None:
        """An admin has changed something, and waits until that is on the disk."""

    # -- opening and closing -----------------------------------------------------------------------

    def _open(self, *, expect_quiet: bool) -> None:
        """Open the volume; the tree must be what the journal says, and, where nothing is reported
        or *expect_quiet*, what the model has. Raises FusejournalError."""
        before = self._builder.model.image()
        context = open_volume(self.volume)
        opened = context.__enter__()
        self._context, self.opened = context, opened
        opened.volume.journal.sync()
        reported = [*opened.opening.repairs, *map(str, opened.opening.degraded)]
        model = model_of(opened.journal_dir)
        assert not (found := difference(image(opened.backing), model.image())), found
        if expect_quiet or not (reported or opened.opening.system_crash or self.is_blind):
            assert not reported, reported
            assert not self._had_life() or not (found := difference(before, model.image())), found
        self._builder.model = model
        self.is_blind = False

    def _had_life(self) -> bool:
        return (self.volume / "state" / "journal").exists() and len(self._builder.model.files) > 1

    def _close(self, how: str) -> None:
        assert self.opened is not None
        assert self._context is not None
        self.opened.orderly = how == "order"
        context, self.opened, self._context = self._context, None, None
        context.__exit__(None, None, None)

    def _stopped(self) -> Image:
        return image(self.places["backing"])

    # -- work --------------------------------------------------------------------------------------

    @precondition(lambda self: self.opened is not None)
    @rule(rolls=st.lists(_ROLLS, min_size=1, max_size=12))
    def work(self, rolls: list[bytes]) -> None:
        for one in rolls:
            self._commit(one)
        self._open_if_failed()

    def _made(self, rolls: bytes) -> tuple[TreeOperation, Caller, bytes] | None:
        """The operation that *rolls* stand for."""
        assert self.opened is not None
        builder = self._builder
        builder.next_fid = self.opened.volume.new_fid()
        dice = Dice(rolls)
        made = builder.tree_operation(dice)
        if made is None:
            return None
        operation, data = made
        uid = dice.one_of((0, 1000))
        return operation, Caller(uid, uid, 77), data

    def _commit(self, rolls: bytes) -> bool:
        """Do what *rolls* stand for, as the model does it. Whether it held."""
        assert self.opened is not None
        volume, builder = self.opened.volume, self._builder
        made = self._made(rolls)
        if made is None:
            return False
        operation, who, data = made
        expected = builder.model.copy()
        try:
            expected.apply(operation, 0, data)
            is_valid = True
        except Refused:
            is_valid = False
        try:
            volume.commit(operation, who, data)
        except ShortWriteError as error:
            data = data[: error.written]
            if volume.failure is not None:
                return False
        except OSError:
            self._check_as_modelled()
            return False
        assert is_valid, operation
        builder.model.apply(operation, self._time_of_last(), data)
        self._check_as_modelled()
        return True

    def _time_of_last(self) -> int:
        """The time of the last entry that changed the tree."""
        assert self.opened is not None
        journal = self.opened.volume.journal
        times = [
            entry.time_ns
            for entry in journal.reader.read(Seq(max(1, journal.head_seq - 1)), _SEQ_MAX)
            if not isinstance(entry.operation, ControlOperation)
        ]
        return times[-1]

    def _check_as_modelled(self) -> None:
        """Unless something half done was reported, backing and journal are what the model is."""
        assert self.opened is not None
        if self.opened.volume.failure is None:
            expected = self._builder.model.image()
            assert not (found := difference(image(self.opened.backing), expected)), found
            meant = model_of(self.opened.journal_dir).image()
            assert not (found := difference(meant, expected)), found

    @precondition(lambda self: self.opened is not None)
    @rule(
        rolls=_ROLLS,
        label=st.sampled_from(("apply.", "apply.", "apply.", "journal.append", "journal.falloc")),
        number=st.sampled_from((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM)),
        count=st.integers(1, 4),
    )
    def be_refused(self, rolls: bytes, label: str, number: int, count: int) -> None:
        """One call of an operation fails, and nothing comes after it that could hide a trace."""
        assert self.opened is not None
        if label != "apply." and number not in (errno.ENOSPC, errno.EDQUOT):
            number = errno.ENOSPC
        with refusing(label, number, count):
            self._commit(rolls)
        self._open_if_failed()

    def _open_if_failed(self) -> None:
        """Something may be half done, and was reported: the next opening makes it whole, one way or
        the other."""
        assert self.opened is not None
        if self.opened.volume.failure is not None:
            self._close("kill")
            self._open_after_failure()

    def _open_after_failure(self) -> None:
        context = open_volume(self.volume)
        self._context, self.opened = context, context.__enter__()
        model = model_of(self.opened.journal_dir)
        assert not (found := difference(image(self.opened.backing), model.image())), found
        self._builder.model = model

    @precondition(lambda self: self.opened is not None)
    @rule()
    def checkpoint(self) -> None:
        assert self.opened is not None
        self.opened.make_checkpoint()

    @precondition(lambda self: self.opened is not None)
    @rule()
    def commit_catalog(self) -> None:
        assert self.opened is not None
        self.opened.durability.commit_catalog()

    # -- stops -------------------------------------------------------------------------------------

    @precondition(lambda self: self.opened is not None)
    @rule(how=st.sampled_from(("order", "order", "kill")))
    def stop_and_open(self, how: str) -> None:
        self._close(how)
        self._open(expect_quiet=True)

    @precondition(lambda self: self.opened is not None)
    @rule()
    def lose_catalog(self) -> None:
        self._close("kill")
        shutil.rmtree(self.volume / "state" / "catalog")
        self._open(expect_quiet=False)

    @precondition(lambda self: self.opened is not None)
    @rule(seed=st.integers(0, 1 << 16))
    def lose_the_machine(self, seed: int) -> None:
        """Loses the machine: of the journal, what was flushed is left, or more; the backing is
        ahead."""
        assert self.opened is not None
        journal = self.opened.volume.journal
        durable_seq, head_seq = journal.durable_seq, journal.head_seq
        self._close("kill")
        last_seq = random.Random(seed).randint(max(1, durable_seq), max(1, head_seq))
        crash_system(self.volume / "state", last_seq)
        self._open(expect_quiet=False)
        assert self.opened.volume.journal.head_seq > durable_seq

    @precondition(lambda self: self.opened is not None)
    @rule()
    def boot_anew(self) -> None:
        self._close("order")
        begin_another_boot(self.volume / "state")
        self._open(expect_quiet=self.has_stopped)

    # -- what admins do ----------------------------------------------------------------------------

    @precondition(lambda self: self.opened is not None)
    @rule(how=st.sampled_from(("order", "order", "kill", "running")))
    def copy(self, how: str) -> None:
        """A copy of both directories, of a stopped volume or of one that runs."""
        assert self.opened is not None
        self._have_room()
        if len(self.copies.found) == 4:
            shutil.rmtree(self.copies.found.pop(0))
        if how == "running":
            self.copies.take(self.places)
            return
        self._close(how)
        self.copies.take(self.places)
        self._open(expect_quiet=True)

    @precondition(lambda self: self.opened is not None and self.copies.found)
    @rule(
        what=st.sampled_from(("state", "backing", "both", "rsync backing", "rsync state")),
        which=st.integers(0, 3),
        how=st.sampled_from(("order", "kill")),
        other_boot=st.booleans(),
    )
    def put_back(self, what: str, which: int, how: str, other_boot: bool) -> None:
        """An older copy comes in the place of what is there. It is refused, or nothing is lost."""
        assert self.opened is not None
        self._have_room()
        self._close(how)
        older = self.copies.found[which % len(self.copies.found)]
        for name, place in self.places.items():
            if name not in what and what != "both":
                continue
            if what.startswith("rsync"):
                copy_tree(place, aside(place))
                rsync_tree(older / name, place)
            else:
                place.rename(aside(place))
                copy_tree(older / name, place)
        if other_boot:
            begin_another_boot(self.volume / "state")
        self._flush()
        contents = contents_of(self.places["backing"])
        before = self._stopped()
        # (Where all that came after was refused, nothing tells the older one, nor needs to.)
        meant = model_of(older / "state" / "journal").image()
        is_older = bool(difference(meant, self._builder.model.image()))
        refusal = ""
        try:
            self._open(expect_quiet=False)
        except FusejournalError as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal
            assert not (found := difference(self._stopped(), before)), found
            self._swap_back(what)
            return
        assert self.opened is not None
        reported = [*self.opened.opening.repairs, *map(str, self.opened.opening.degraded)]
        assert reported or not is_older, (what, "an older copy was taken without a word")
        kept = contents_of(*self.places.values())
        assert contents <= kept, (what, reported)
        for place in self.places.values():
            shutil.rmtree(aside(place), ignore_errors=True)

    def _swap_back(self, what: str) -> None:
        """The admin heeds the message: what was there comes back, and works."""
        if what == "rsync backing":
            self._begin_anew()  # what was overwritten in place cannot come back
        else:
            for place in self.places.values():
                if aside(place).exists():
                    shutil.rmtree(place)
                    aside(place).rename(place)
            self._flush()
            self._open(expect_quiet=False)

    @precondition(lambda self: self.opened is not None)
    @rule(
        which=st.integers(0, 30),
        way=st.sampled_from(("missing", "empty", "half", "older", "another volume's")),
        how=st.sampled_from(("order", "kill")),
        other_boot=st.booleans(),
    )
    def spoil_a_file(self, which: int, way: str, how: str, other_boot: bool) -> None:
        """One file of the state directory is not what it was: that is refused in words, or what is
        reported comes with it, or nothing is different."""
        assert self.opened is not None
        self._have_room()
        head_seq = self.opened.volume.journal.head_seq
        self._close(how)
        state = self.volume / "state"
        names = [
            path.relative_to(state)
            for path in sorted(state.rglob("*"))
            if path.is_file() and path.name not in ("uuid", "lock.mdb")
        ]
        name = names[which % len(names)]
        if other_boot and how == "order":
            begin_another_boot(state)
        whole = (state / name).read_bytes()
        self._spoil(state / name, way, name)
        self._flush()
        before = self._stopped()
        refusal = ""
        expected = self._builder.model.image()
        try:
            self._open(expect_quiet=False)
        except FusejournalError as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal
            assert not (found := difference(self._stopped(), before)), found
            (state / name).write_bytes(whole)
            self._flush()
            self._open(expect_quiet=False)
        assert self.opened is not None
        # With the last entry before a process crash, a torn frame may go that it had not answered.
        assert self.opened.volume.journal.head_seq >= head_seq, (name, way)
        found = difference(image(self.opened.backing), expected)
        assert not found, (name, way, found)

    def _spoil(self, path: Path, way: str, name: Path) -> None:
        content = path.read_bytes()
        others = {
            "older": self.copies.found[0] / "state" / name if self.copies.found else path,
            "another volume's": self.other / "state" / name,
        }
        if way in others:
            if others[way].exists():
                path.write_bytes(others[way].read_bytes())
        elif way == "missing":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if way == "half" else b"")

    def _begin_anew(self) -> None:
        for place in self.places.values():
            for directory in (place, aside(place)):
                shutil.rmtree(directory, ignore_errors=True)
            place.mkdir()
        self.copies.found.clear()
        self._builder.model = Model()
        self._open(expect_quiet=False)

    def _check_copies(self, uuid: UUID) -> None:
        """Replay and a mirror come to what the volume has come to, which is closed."""
        check_copies(self.volume, uuid, self.base)

    def teardown(self) -> None:
        try:
            if self.opened is not None:
                volume = self.opened.volume
                self._check_as_modelled()
                self._have_room()
                self._close("order")
                if volume.failure is None:
                    self._check_copies(volume.journal.uuid)
        finally:
            failpoints.listen(None)
            if self.opened is not None:
                with suppress(OSError):
                    self._close("kill")
            self._leave_places()
            shutil.rmtree(self.base)


def live(machine: type[Lives], examples: int) -> None:
    """Run so many lives of *machine*, or as many as the environment says."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("FUSEJOURNAL_MODEL_LIVES", examples)),
            stateful_step_count=_STEPS,
            deadline=None,
            derandomize=not _ASKED,
            database=None,
            phases=(Phase.generate, Phase.shrink) if _ASKED else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_lives() -> None:
    live(Lives, 20)
