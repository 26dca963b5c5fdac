"""A mirror whose journal does not meet its primary's copies the tree, all of it or what differs."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import trio
from click.testing import CliRunner

from fusejournal.address import parse_address
from fusejournal.admin import copy_space
from fusejournal.admin.prune_journal import JournalPruning
from fusejournal.admin.rejoin import Rejoined, RejoinRequest
from fusejournal.admin.status import volume_status
from fusejournal.admin.version_store import VolumeStore
from fusejournal.admin.versions import VolumeVersions
from fusejournal.cli.branch import branch
from fusejournal.cli.rejoin import _show, rejoin
from fusejournal.config import JournalConfig, ReplicationConfig
from fusejournal.errors import BackingError, RecoveryError
from fusejournal.journal.base import load_base
from fusejournal.journal.branches import Branch, list_branches
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.disk_space import DiskSpace
from fusejournal.node.journal_limits import journal_limits
from fusejournal.node.state_dir import VolumeState, load_state
from fusejournal.objects.service import do_not_wait
from fusejournal.operations import Link, Rename, Rmdir, Setattr, Setxattr, Truncate, Write
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.rejoin import RejoinError
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.bases import keys_pinned_by
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.manifest import list_versions
from fusejournal.versions.place import read_place
from fusejournal.volume import checkpoint
from fusejournal.volume.reconcile import contents
from fusejournal.volume.whole_set import FILE, load_whole_set
from tests.support.bases import begin_with_base
from tests.support.losses import Died, crash_system, dying_at, failing_at
from tests.support.pairs import level, listens_at, running, until
from tests.support.trees import difference, image
from tests.support.volumes import SOMEBODY, open_volume
from tests.unit.admin.test_rejoin import Silent, make_state

_Result = TypeVar("_Result")
pytestmark = pytest.mark.mount


_LARGE_BYTES = 3_000_000


class Places(NamedTuple):
    """A primary whose journal begins with a base, and a mirror."""

    primary: Path
    mirror: Path

    @property
    def state(self) -> VolumeState:
        """The mirror's."""
        return load_state(self.mirror / "state")


@pytest.fixture
def pruned(tmp_path: Path) -> Places:
    places = Places(tmp_path / "primary", tmp_path / "mirror")
    with open_volume(places.primary) as volume:
        volume.work(30)
        large = volume.create("large", os.urandom(_LARGE_BYTES))
        directory = volume.mkdir("sub")
        volume.volume.commit(Link(large, directory, b"link"), SOMEBODY)
        volume.volume.commit(Setattr(ROOT_FID, 0o1777, 12, 13, None, None), SOMEBODY)
        volume.volume.commit(Setxattr(ROOT_FID, b"user.of", b"the root"), SOMEBODY)
    make_state(places.primary, Role.PRIMARY)
    begin_with_base(places.primary / "state", tmp_path / "store")
    with open_volume(places.primary) as volume:
        volume.work(5, start=100)
        large_fid = volume.volume.catalog.lookup(ROOT_FID, b"large")
        assert large_fid is not None
        volume.volume.commit(Write(large_fid, 1000, None), SOMEBODY, b"changed")
    return places


def begin_mirror(places: Places) -> None:
    with open_volume(places.mirror, mirror=True) as mirror:
        uuid = mirror.volume.journal.uuid
    (places.mirror / "state" / "uuid").write_text(str(uuid))
    make_state(places.mirror, Role.UNINITIALIZED)
    (places.mirror / "state" / "uuid").unlink()


async def _asking(places: Places, work: Callable[[], _Result]) -> _Result:
    """Does *work* while the primary runs, and has an address at the mirror."""
    with open_volume(places.primary) as primary:
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(primary):
            book = PeerBook(places.mirror / "state")
            book.add("primary", parse_address(listens_at(primary)))
            book.save()
            return await trio.to_thread.run_sync(work)


def _request(places: Places, *, whole: bool = False) -> RejoinRequest:
    return RejoinRequest(places.state, None, None, insecure=True, whole=whole)


def run(places: Places, *, whole: bool = False) -> Rejoined:
    def work() -> Rejoined:
        return _request(places, whole=whole).run(Silent(), lambda: None)

    return trio.run(_asking, places, work)


async def _ship(places: Places) -> None:
    with open_volume(places.mirror, mirror=True, uuid=places.state.uuid) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            with open_volume(places.primary) as primary:
                config = ReplicationConfig(peers={"there": listens_at(mirror)})
                primary.replicate(config, "127.0.0.1:0")
                async with running(primary):
                    await until("it is level", level(primary, mirror))


def check_level(places: Places) -> None:
    trio.run(_ship, places)
    one, other = (place / "backing" for place in (places.primary, places.mirror))
    assert not (found := difference(image(one), image(other))), found
    assert not (places.mirror / "state" / FILE).exists()


def _die(places: Places, label: str, count: int) -> None:
    """Runs a rejoin that is killed at a call."""
    with dying_at(label, count), pytest.raises(BaseExceptionGroup) as caught:
        run(places)
    assert isinstance(first_error(caught.value), Died), label


def _die_and_go_on(places: Places, deaths: list[tuple[str, int]]) -> Rejoined:
    """Runs a rejoin that is killed at one call after another. Returns what the last one did."""
    for label, count in deaths:
        _die(places, label, count)
        if (places.mirror / "state" / FILE).exists():
            told = "\n".join(volume_status(places.state).degraded)
            assert "a rejoin has begun" in told
            _check_pins(places.state)
    if not (places.mirror / "state" / FILE).exists():
        return run(places)
    done = _request(places).run(Silent(), lambda: None)  # without its primary
    assert done.done
    return done


_NEW = [("rejoin.root.mark", 1), ("level.write", 9), ("level.done", 1)]
_KEPT = [("branch.rename", 1), ("level.root", 1)]
_BEHIND = [("reconcile.write", 1), ("reconcile.place", 3)]
if os.environ.get("FUSEJOURNAL_TEST_COPIES"):
    _NEW = [("object.link", 3), *_NEW[:1], ("level.intent", 1), ("level.journal", 1), *_NEW[1:]]
    _KEPT, _BEHIND = [("object.link", 2), *_KEPT], [("level.journal", 1), *_BEHIND]


def test_a_new_mirror_of_a_pruned_primary_killed_again_and_again(pruned: Places) -> None:
    begin_mirror(pruned)
    os.setxattr(pruned.mirror / "backing", "user.own", b"of a root that is nobody's yet")
    planned = trio.run(_asking, pruned, lambda: _request(pruned).plan())
    assert (planned.rung, planned.done, planned.tree_files > 90) == (4, False, True)
    done = _die_and_go_on(pruned, _NEW)
    assert (done.rung, done.tree_seq) == (4, planned.tree_seq)
    base = load_base(pruned.mirror / "state")
    assert base is not None
    assert base.seq == done.tree_seq
    assert pruned.state.role is Role.MIRROR
    assert read_place(pruned.mirror / "state") is not None
    check_level(pruned)


def test_files_whose_contents_a_full_disk_or_a_system_crash_has_lost(pruned: Places) -> None:
    begin_mirror(pruned)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with failing_at("level.write", 9, full), pytest.raises(BaseExceptionGroup) as caught:
        run(pruned)
    error = first_error(caught.value)
    assert isinstance(error, RecoveryError)
    assert "No space left on device; mend that, and the same command goes on" in str(error)
    _die(pruned, "level.done", 1)
    intent = pruned.mirror / "state" / FILE
    raw = json.loads(intent.read_text())
    intent.write_text(json.dumps({**raw, "boot": "another", "is_filled": False}))
    large = pruned.mirror / "backing" / "large"
    times = large.stat()
    large.write_bytes(bytes(times.st_size))  # the name and the fid came to the disk, and no more
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    _die(pruned, "level.done", 1)
    link = pruned.mirror / "backing" / "sub" / "link"
    assert link.stat().st_ino == large.stat().st_ino, "no name is left to what was lost"
    _die_and_go_on(pruned, [])
    check_level(pruned)


# -- a mirror that was away ------------------------------------------------------------------------


def _go_on_and_prune(places: Places, store: Path) -> None:
    """The primary changes this and that, and its journal begins later then."""
    with open_volume(places.primary) as volume:
        lookup = volume.volume.catalog.lookup
        large, moved, gone = (lookup(ROOT_FID, name) for name in (b"large", b"d3", b"d7"))
        assert large is not None
        assert moved is not None
        assert gone is not None
        commit = volume.volume.commit
        commit(Write(large, 150_000, None), SOMEBODY, b"other")
        commit(Setattr(moved, 0o711, None, None, None, None), SOMEBODY)
        new = volume.mkdir("new")
        commit(Rename(moved, ROOT_FID, b"d3", new, b"moved", 0, Fid(0)), SOMEBODY)
        for name in (b"a", b"c"):
            fid = lookup(gone, name)
            assert fid is not None
            volume.unlink(fid, name.decode(), gone)
        commit(Rmdir(gone, ROOT_FID, b"d7"), SOMEBODY)
        volume.create("d7", b"a file by the name of a directory")
        volume.work(3, start=200)
    begin_with_base(places.primary / "state", store)
    with open_volume(places.primary) as volume:
        volume.work(2, start=300)


@pytest.fixture
def behind(pruned: Places, tmp_path: Path) -> Places:
    """A mirror that was level, and has not what its primary's journal has not any more."""
    begin_mirror(pruned)
    run(pruned)
    check_level(pruned)
    _go_on_and_prune(pruned, tmp_path / "store")
    return pruned


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the blocks that are read from now on."""
    lengths: list[int] = []

    def read(reader: BlockReader, id_: bytes) -> bytes:
        data = unpatched(reader, id_)
        lengths.append(len(data))
        return data

    unpatched = BlockReader.read
    monkeypatch.setattr(BlockReader, "read", read)
    return lengths


def test_a_mirror_that_was_away_for_too_long(
    behind: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_WHOLE_BYTES_MAX", 1 << 20)
    before = load_base(behind.mirror / "state")
    planned = trio.run(_asking, behind, lambda: _request(behind).plan())
    assert (planned.rung, planned.done) == (3, False)
    lengths = _count_reads(monkeypatch)
    done = _die_and_go_on(behind, _KEPT + _BEHIND)
    assert sum(lengths) < _LARGE_BYTES  # of its chunks some alone, by each attempt
    monkeypatch.undo()
    after = load_base(behind.mirror / "state")
    assert before is not None
    assert after is not None
    assert after.seq == done.tree_seq > before.seq
    assert done.fetched_bytes < 250_000  # of the large file some chunks alone
    (kept,) = list_branches(behind.mirror / "state")
    assert kept.first_seq == before.seq + 1
    assert (done.branch, done.head_seq) == (kept.name, kept.head.seq)
    check_level(behind)
    _check_branch(behind.state, kept, before.version, tmp_path / "restored")


def _check_pins(state: VolumeState) -> None:
    """The version of the tree that the backing had stays, also where the journal is pruned."""
    begun = load_whole_set(state.directory)
    if begun is None or begun.inodes is None or not list_segments(state.journal_dir):
        return  # (Without a journal it is not pruned.)
    store = VolumeStore(state, do_not_wait, None).open(writing=True)
    versions = VolumeVersions(str(state.directory))
    JournalPruning(versions, JournalConfig())._pin_base(store)
    pinned = keys_pinned_by(store, state.created_ns)
    found = {one.inodes.hex() for one in list_versions(store, state.uuid) if one.key in pinned}
    assert {begun.inodes, begun.base.inodes} <= found


def _check_branch(state: VolumeState, kept: Branch, version: str, target: Path) -> None:
    """The branch of a journal that began with *version* can be read, and holds nothing back."""
    words = [str(state.directory), kept.name, "large"]
    shown = CliRunner().invoke(branch, ["show", *words]).output
    assert "write" in shown.lower()
    listed = CliRunner().invoke(branch, ["list", words[0], "--path", "large"]).output
    assert kept.name in listed
    done = CliRunner().invoke(branch, ["restore", *words, "--target", str(target)])
    assert done.exit_code == 0, done.output
    assert (target / "large").read_bytes()[1000:].startswith(b"changed")
    store = VolumeStore(state, do_not_wait, None).open()
    base = load_base(state.directory)
    assert base is not None
    assert keys_pinned_by(store, state.created_ns) == {base.version, version}
    with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
        assert not [one for one in journal_limits(state, page) if "branch" in one.why]


def test_a_file_was_moved_before_its_content_was_on_the_disk(
    pruned: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_WHOLE_BYTES_MAX", 0)  # all count as large
    begin_mirror(pruned)
    run(pruned)
    check_level(pruned)
    with open_volume(pruned.primary) as volume:
        large = volume.volume.catalog.lookup(ROOT_FID, b"large")
        assert large is not None
        commit = volume.volume.commit
        commit(Write(large, 150_000, None), SOMEBODY, b"other")
        commit(Truncate(large, 200_000, None), SOMEBODY)
        commit(Truncate(large, 1 << 26, None), SOMEBODY)
        commit(Rename(large, ROOT_FID, b"large", ROOT_FID, b"renamed", 0, Fid(0)), SOMEBODY)
    begin_with_base(pruned.primary / "state", tmp_path / "store")
    with open_volume(pruned.primary) as volume:
        volume.work(2, start=300)
        volume.volume.commit(Truncate(large, 250_000, None), SOMEBODY)
    elsewhere = pruned.mirror / "backing" / "sub" / "link"
    before = elsewhere.read_bytes()
    _die(pruned, "reconcile.place", 1)
    assert not (pruned.mirror / "backing" / "large").exists()
    elsewhere.write_bytes(before)  # the disk had the names, and none of the content
    _die_and_go_on(pruned, [])
    check_level(pruned)
    assert elsewhere.stat().st_blocks * 512 < 1 << 20


async def _apply_one_more(places: Places) -> Seq:
    """The mirror applies an entry, and is killed. Returns the one before that."""
    with open_volume(places.mirror, mirror=True, uuid=places.state.uuid) as mirror:
        mirror.orderly = False
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            with open_volume(places.primary) as primary:
                config = ReplicationConfig(peers={"there": listens_at(mirror)})
                primary.replicate(config, "127.0.0.1:0")
                async with running(primary):
                    await until("it is level", level(primary, mirror))
                    primary.make_checkpoint()
                    before_seq = primary.volume.journal.head_seq
                    large = primary.volume.catalog.lookup(ROOT_FID, b"large")
                    assert large is not None
                    primary.volume.commit(Write(large, 0, None), SOMEBODY, b"lost")
                    await until("it is level", level(primary, mirror))
    return before_seq


def test_an_entry_in_doubt_that_the_source_has_not(
    pruned: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CLOCK_SLACK_NS", 0)
    begin_mirror(pruned)
    run(pruned)
    check_level(pruned)
    before_seq = trio.run(_apply_one_more, pruned)
    assert (pruned.mirror / "backing" / "large").read_bytes().startswith(b"lost")
    crash_system(pruned.primary / "state", before_seq)
    with open_volume(pruned.primary) as volume:
        volume.work(30, start=400)
    begin_with_base(pruned.primary / "state", tmp_path / "store")
    with open_volume(pruned.primary) as volume:
        volume.work(2, start=500)
    assert run(pruned).rung == 3
    check_level(pruned)


# -- which way, and refusals -----------------------------------------------------------------------


def test_a_new_mirror_of_a_primary_with_its_whole_journal(tmp_path: Path) -> None:
    places = Places(tmp_path / "primary", tmp_path / "mirror")
    with open_volume(places.primary) as volume:
        volume.work(40)
    make_state(places.primary, Role.PRIMARY)
    begin_mirror(places)
    (places.mirror / "backing" / "found").touch()
    done = run(places)
    assert (done.rung, done.journal_bytes > 0) == (1, True)
    assert places.state.role is Role.UNINITIALIZED
    with pytest.raises(BaseExceptionGroup) as caught:
        run(places, whole=True)
    assert isinstance(first_error(caught.value), BackingError)
    (places.mirror / "backing" / "found").unlink()
    done = run(places, whole=True)
    assert (done.rung, done.fetched_bytes > 0) == (4, True)
    # The primary had no store of versions, and has one now.
    assert read_place(places.primary / "state") is not None
    check_level(places)


def test_a_copy_that_cannot_fit(pruned: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_mirror(pruned)
    monkeypatch.setattr(copy_space, "disk_space", lambda _: DiskSpace(1000, 1 << 40))
    with pytest.raises(BaseExceptionGroup) as caught:
        run(pruned)
    error = first_error(caught.value)
    assert isinstance(error, RejoinError)
    assert "nothing was copied" in str(error)
    assert not list((pruned.mirror / "state" / "versions").glob("packs/*"))
    request = RejoinRequest(pruned.state, None, None, insecure=True, ignores_space=True)
    done = trio.run(_asking, pruned, lambda: request.run(Silent(), lambda: None))
    assert done.rung == 4


def test_nobody_can_be_asked(pruned: Places) -> None:
    begin_mirror(pruned)
    with pytest.raises(RejoinError, match="knows no address of a primary"):
        _request(pruned).plan()


def test_the_command(pruned: Places, capsys: pytest.CaptureFixture[str]) -> None:
    begin_mirror(pruned)
    words = [str(pruned.mirror / "state"), "--insecure", "--dry-run"]
    dry = trio.run(_asking, pruned, lambda: CliRunner().invoke(rejoin, words).output)
    assert "all of its tree would be copied (as of its newest version: " in dry
    done = run(pruned)
    _show(done, True, False)
    assert "all of its tree is here as of entry" in capsys.readouterr().out
    _show(replace(done, rung=3, branch="1-7", own_entries=7), True, False)
    assert "the journal that was here, 7 entries, is branch 1-7 now" in capsys.readouterr().out
    _show(replace(done, rung=3, done=False), True, False)
    assert "what differs from its tree would be copied" in capsys.readouterr().out
    _show(replace(done, rung=1, journal_bytes=7), True, False)
    assert "nothing is to be copied" in capsys.readouterr().out
