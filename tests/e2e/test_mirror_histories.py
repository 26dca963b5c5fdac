"""Histories that part, and what a machine that was lost gets back: nothing is guessed, nothing is
applied that may not be, and whatever a mirror alone has is kept.

The primary lies on a file system of its own, which can be set back to what it was at some moment,
as a machine is that did not write what it had in memory, or that an admin restored a snapshot
of."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replay.digest import digest_tree
from fusejournal.types import Seq
from tests.support.losses import begin_another_boot
from tests.support.mirrors import Node, await_level, check_equal, started, wait_for
from tests.support.network import network

pytestmark = pytest.mark.mount

_CONFIG = """
[journal]
segment_bytes = "256KiB"
[replication]
take_back_seconds = 2.0
without_peers = "{without_peers}"
"""


class Disk:
    """An ext4 file system in a file, mounted at ``base/disk``."""

    def __init__(self, base: Path) -> None:
        self._image, self._kept = base / "disk.img", base / "kept.img"
        self.mountpoint = base / "disk"
        self.mountpoint.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.mountpoint)], check=True)

    def _freeze(self, how: str) -> None:
        subprocess.run(["fsfreeze", how, str(self.mountpoint)], check=True)

    def keep(self) -> None:
        """Remember what is on it now."""
        self._freeze("-f")
        try:
            copying = ["cp", "--sparse=always", str(self._image), str(self._kept)]
            subprocess.run(copying, check=True)
        finally:
            self._freeze("-u")

    def set_back(self) -> None:
        """Make it what it was when :meth:`keep` was called; no process may use it."""
        self.remove()
        subprocess.run(["cp", "--sparse=always", str(self._kept), str(self._image)], check=True)
        self._mount()

    def remove(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.mountpoint)], check=True)


@contextmanager
def two(base: Path, without_peers: str = "new-epoch") -> Iterator[tuple[Node, Node, Disk]]:
    """A primary on a disk that can be set back, and its mirror, both running and level."""
    config = _CONFIG.format(without_peers=without_peers)
    disk = Disk(base)
    try:
        with (
            network() as net,
            Node(disk.mountpoint / "primary", net.host(), "primary", config) as primary,
            Node(base / "mirror", net.host(), "mirror", config) as mirror,
        ):
            primary.ships_to(mirror)
            primary.start()
            mirror.start()
            write(primary, "before")
            check_equal(primary, mirror)
            yield primary, mirror, disk
    finally:
        disk.remove()


def write(node: Node, name: str) -> None:
    """Some entries."""
    (node.mountpoint / name).mkdir()
    for n in range(20):
        (node.mountpoint / name / str(n)).write_bytes(f"{name} {n}".encode() * 500)


def crash_system(node: Node, disk: Disk) -> None:
    """Loses what was not on the disk when it was kept; a new boot begins."""
    node.kill()
    node.detach()
    disk.set_back()
    begin_another_boot(node.state)


# -- divergence ----------------------------------------------------------------------------------


def test_a_mirror_that_is_ahead_and_then_has_another_history(tmp_path: Path) -> None:
    with two(tmp_path) as (primary, mirror, disk):
        primary.stop()
        disk.keep()
        primary.start()
        common_seq = primary.head_seq()
        write(primary, "after")
        check_equal(primary, mirror)
        digest, ahead_seq = digest_tree(mirror.mountpoint).digest, mirror.head_seq()
        primary.stop()
        disk.set_back()

        # It was stopped in order, so nothing here says that it lost anything: the mirror does.
        before = {path.name: path.lstat().st_ino for path in mirror.mountpoint.rglob("*")}
        primary.start()
        assert primary.ask()["epoch"] == 2
        assert any("put back from an older copy" in line for line in primary.ask()["degraded"])
        (primary.mountpoint / "new").touch()
        assert (primary.mountpoint / "new").lstat().st_ino not in before.values()
        status = primary.await_peer(mirror, "diverged")
        assert f"entries {common_seq + 1} to {mirror.head_seq()}" in status["last_error"]
        assert primary.ask()["degraded"]
        told = mirror.mirroring()
        assert told["state"] == "diverged"
        assert f"from {common_seq + 1} on" in told["last_error"]
        assert "fusejournal rejoin" in told["last_error"]
        plan = json.loads(mirror.run("rejoin", str(mirror.state), "--dry-run", "--json").stdout)
        assert (plan["rung"], plan["head_seq"]) == (2, ahead_seq)
        assert plan["parted"].split("/")[1] == str(common_seq)
        refused = mirror.run("rejoin", str(mirror.state), check=False)
        assert refused.returncode == 4
        assert "is held by process" in refused.stderr

        # More entries than the mirror has, from the same place on.
        write(primary, "otherwise")
        write(primary, "and more")
        primary.resume(mirror)
        wait_for(
            lambda: f"other entries from {common_seq + 1}" in primary.peer(mirror)["last_error"],
            lambda: primary.peer(mirror),
        )
        assert primary.peer(mirror)["state"] == "diverged"
        assert digest_tree(mirror.mountpoint).digest == digest
        mirror.stop()
        mirror.start()
        primary.resume(mirror)
        primary.await_peer(mirror, "diverged")
        assert digest_tree(mirror.mountpoint).digest == digest

        # As the advice says.
        mirror.stop()
        rejoin_through_kills(mirror)
        mirror.start()
        assert not (mirror.mountpoint / "after").exists()
        primary.resume(mirror)
        check_equal(primary, mirror)
        check_branch(mirror, tmp_path / "restored", common_seq, ahead_seq)
        head_seq, digest = mirror.head_seq(), digest_tree(mirror.mountpoint).digest

        # The same older copy once more: the mirror knows of the later reign now.
        primary.stop()
        disk.set_back()
        for is_reachable in (True, False):  # and what it has said is not forgotten
            if not is_reachable:
                mirror.host.cut()
            primary.start()
            check_fenced(primary, mirror)
            primary.stop()
        mirror.host.mend()
        assert (mirror.head_seq(), digest_tree(mirror.mountpoint).digest) == (head_seq, digest)


_KILLS = (
    *("branch.segment", "branch.rename", "rejoin.intent.sync", "rejoin.intent.directory"),
    *("checkpoint.write", "rejoin.root", "journal.cut_back.write", "journal.cut_back.unlinked"),
    *("reconcile.unlink", "reconcile.chown", "checkpoint.syncfs", "rejoin.done.unlink"),
)
"""Labels at which a rejoin is killed, one after the other."""


def rejoin_through_kills(mirror: Node) -> None:
    """Until it is at its end; whatever it has begun is said meanwhile, and nothing is served."""
    plain = mirror.environment
    killed = 0
    for label in _KILLS:
        mirror.environment = {**plain, "FUSEJOURNAL_FAULT": f"{label}:1:kill"}
        code = mirror.run("rejoin", str(mirror.state), check=False).returncode
        mirror.environment = plain
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if (mirror.state / "rejoin.json").exists():
            assert "a rejoin has begun" in mirror.run("status", str(mirror.state)).stdout
            refused = mirror.run(*mirror.mount_arguments("-o", "ro"), check=False)
            assert refused.returncode == 15
            assert "it goes on" in refused.stderr
        elif code == 0:
            break
    assert killed > 6
    mirror.run("rejoin", str(mirror.state), check=False)


def check_branch(mirror: Node, target: Path, common_seq: int, ahead_seq: int) -> None:
    """Checks that what it alone had is kept once, found by its path, and comes back."""
    state = str(mirror.state)
    (line,) = mirror.run("branch", "list", state, "--path", "after", "--json").stdout.splitlines()
    name = json.loads(line)["name"]
    assert name == f"{common_seq + 1}-{ahead_seq}"
    entries = mirror.run("branch", "show", state, name, "--json").stdout.splitlines()
    seqs = {json.loads(one)["seq"] for one in entries}
    assert min(seqs) == common_seq + 1
    mirror.run("branch", "restore", state, name, "after", "--target", str(target))
    assert sorted(path.name for path in target.iterdir()) == sorted(map(str, range(20)))
    assert (target / "7").read_bytes() == b"after 7" * 500
    branches = mirror.ask()["branches"]
    assert branches["count"] == 1
    assert branches["keep_days"] == 90
    assert f"branch list {mirror.ask()['name']}" in mirror.run("status", state).stdout


def check_fenced(primary: Node, mirror: Node) -> None:
    """It can be read, takes no change, and says why, and what to do."""
    status = primary.ask()
    assert (status["epoch"], status["state"]) == (1, "read-only")
    told = "\n".join(status["degraded"])
    assert re.search("fenced: .*reign 2/", told)
    assert "make this one a mirror" in told
    shipping = primary.await_peer(mirror, "refused")
    assert "reign 2/" in shipping["last_error"]
    assert "primary" in shipping["advice"]
    with pytest.raises(OSError, match="Read-only"):
        write(primary, "too late")
    assert (primary.mountpoint / "before").is_dir()


# -- a system crash ------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", ["behind", "ahead"])
def test_a_primary_takes_back_what_it_lost(tmp_path: Path, backing: str) -> None:
    with two(tmp_path) as (primary, mirror, disk):
        disk.keep()
        write(primary, "after")
        if backing == "behind":
            os.rename(primary.mountpoint / "before", primary.mountpoint / "renamed")
        check_equal(primary, mirror)
        digest, head_seq = digest_tree(primary.mountpoint).digest, primary.head_seq()
        if backing == "behind":
            crash_system(primary, disk)
        else:  # the journal alone was not written
            primary.kill()
            primary.detach()
            cut_journal(primary, 15)
            watermarks = WatermarkPage(primary.state / "watermarks")
            # Nor had been flushed.
            watermarks.write_durable(min(watermarks.durable_seq, Seq(head_seq - 15)))
            watermarks.close()
            begin_another_boot(primary.state)
        primary.start()
        assert digest_tree(primary.mountpoint).digest == digest
        assert primary.head_seq() > head_seq
        assert primary.ask()["epoch"] == 2
        write(primary, "later")
        check_equal(primary, mirror)
        assert "back from mirror" in primary.words()


def cut_journal(primary: Node, entries: int) -> None:
    """Take the last *entries* from the primary's newest segment."""
    path = list_segments(primary.state / "journal")[-1]
    with SegmentReader(path) as reader:
        offsets = [frame.offset for frame in reader.frames()]
    assert len(offsets) > entries
    os.truncate(path, offsets[-entries])


def test_a_primary_with_no_peer_in_reach_begins_a_new_epoch(tmp_path: Path) -> None:
    """The mirror, which has what was lost, then has another history; and a primary of the old
    epoch, which an admin starts from a snapshot, is fenced off by one that knows of the new."""
    with two(tmp_path) as (primary, mirror, disk):
        disk.keep()
        write(primary, "after")
        check_equal(primary, mirror)
        mirror.host.cut()
        crash_system(primary, disk)
        primary.start()
        status = primary.ask()
        assert status["epoch"] == 2
        assert any("no peer answered" in line for line in status["degraded"]), status["degraded"]
        write(primary, "without")
        mirror.host.mend()
        primary.resume(mirror)
        primary.await_peer(mirror, "diverged")
        assert mirror.mirroring()["state"] == "diverged"

        mirror.stop()
        mirror.begin_anew()
        mirror.start()
        primary.resume(mirror)
        check_equal(primary, mirror)
        head_seq, digest = mirror.head_seq(), digest_tree(mirror.mountpoint).digest

        primary.kill()
        primary.detach()
        disk.set_back()
        for is_reachable in (True, False):  # what it has heard once it knows
            if not is_reachable:
                mirror.host.cut()
            primary.start(wait=False)
            assert primary.wait() == 26
            assert re.search("fenced: .*reign 2/", primary.words())
            assert "make this one a mirror" in primary.words()
        mirror.host.mend()
        assert (mirror.head_seq(), digest_tree(mirror.mountpoint).digest) == (head_seq, digest)


def test_a_primary_that_is_to_wait_for_a_peer(tmp_path: Path) -> None:
    with two(tmp_path, "wait") as (primary, mirror, disk):
        disk.keep()
        write(primary, "after")
        check_equal(primary, mirror)
        digest = digest_tree(primary.mountpoint).digest
        mirror.host.cut()
        crash_system(primary, disk)
        primary.start(wait=False)
        wait_for(lambda: "waiting for one" in primary.words(), primary.words)
        assert not primary.is_mounted()
        mirror.host.mend()
        primary.await_live()
        assert digest_tree(primary.mountpoint).digest == digest
        check_equal(primary, mirror)


def test_the_middle_of_a_chain_loses_its_machine(tmp_path: Path) -> None:
    """It no longer knows what it had applied, while its mirror has all of it: no node takes that
    for another history."""
    with started(tmp_path, None, None, cascade=True) as (primary, middle, last):
        write(primary, "before")
        check_equal(primary, middle, last)
        watermarks = WatermarkPage(middle.state / "watermarks")
        early_seq = watermarks.committed_seq
        watermarks.close()
        for name in ("one", "two", "three"):
            write(primary, name)
        check_equal(primary, middle, last)
        middle.kill()
        middle.detach()
        watermarks = WatermarkPage(middle.state / "watermarks")
        watermarks.write_committed(early_seq)
        watermarks.write_durable(early_seq)
        watermarks.write_applying(early_seq)
        watermarks.close()
        begin_another_boot(middle.state)
        middle.start()
        middle.await_peer(last, "streaming")
        primary.resume(middle)
        write(primary, "after")
        check_equal(primary, middle, last)
        assert "diverged" not in middle.words()
        assert not (last.state / "parted.json").exists()


# -- retention -----------------------------------------------------------------------------------


def test_a_peer_that_is_too_far_behind_needs_a_full_copy(tmp_path: Path) -> None:
    config = '[replication]\nkeep_bytes = "1MiB"\n'
    with started(tmp_path, None, config=config) as (primary, mirror):
        (primary.mountpoint / "first").mkdir()
        await_level(primary, mirror)
        mirror.stop()
        (primary.mountpoint / "large").write_bytes(os.urandom(3 << 20))
        status = primary.await_peer(mirror, "needs full copy")
        assert "are kept" in status["last_error"]
        assert "peer resume" in status["advice"]
        assert any("needs full copy" in line for line in primary.ask()["degraded"])
        mirror.start()
        primary.stop()
        primary.start()
        primary.await_peer(mirror, "needs full copy")
        assert not (mirror.mountpoint / "large").exists()

        # As the advice says.
        mirror.stop()
        mirror.begin_anew()
        primary.run("peer", "remove", str(primary.state), mirror.name)
        primary.stop()
        primary.ships_to(mirror)
        primary.start()
        mirror.start()
        check_equal(primary, mirror)
