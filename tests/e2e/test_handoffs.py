"""A primary hands its reign over to a mirror: with real layers in network namespaces, while others
write, there and back, and with either side killed at each step."""

import ctypes
import errno
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fusejournal.address import node_name
from fusejournal.control.client import ask
from fusejournal.node.state_dir import load_state
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.role import Role
from tests.support.forked import Forked
from tests.support.hook_programs import HookPrograms, with_hooks
from tests.support.mirrors import CONFIG, Node, await_level, check_equal, nodes, wait_for
from tests.support.promotions import serves

pytestmark = pytest.mark.mount


_WRITER = 1000
"""The user who writes, who may not write to the places that mounts cover."""


_WRITERS = itertools.count()


REFUSALS = {errno.EROFS, errno.ENOTCONN, errno.ECONNABORTED}
"""The errors of a mirror's mount, and of one whose role changes."""


def hand_over(node: Node, other: Node, *options: str) -> dict[str, Any]:
    """Hand over from *node* to *other*, and return what the command tells."""
    done = node.run("handoff", str(node.state), other.name, "--json", *options)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


class Writer:
    """Writes file after file below the mounts of *nodes*, at the first of them that takes it, until
    the block ends; keeps what was acknowledged, and each error.

    Each writer has names of its own: a file whose creation went well and whose write was refused
    is there, though not acknowledged, when the next writer comes.
    """

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes
        self._prefix = f"w{next(_WRITERS)}-"
        self._places = {node.name: os.open(node.base, os.O_PATH) for node in nodes}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.done: dict[str, int] = {}
        """Names that were acknowledged, and at which node."""
        self.errors: list[tuple[int, int | None]] = []
        """The node and the errno of each change that was refused."""
        self.longest_seconds = 0.0
        """The longest time between two that were done."""

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for place in self._places.values():
            os.close(place)

    def _run(self) -> None:
        at, number, last = 0, 0, time.monotonic()
        # Nothing that is written is to get past a mount that is gone for a moment.
        ctypes.CDLL(None).setfsuid(_WRITER)
        while not self._is_over.is_set():
            name = f"{self._prefix}{number}"
            try:
                self._write(self._nodes[at], name)
            except OSError as error:
                self.errors.append((at, error.errno))
                at = (at + 1) % len(self._nodes)
                time.sleep(0.005)
                number += 1
                continue
            self.done[name] = at
            now = time.monotonic()
            self.longest_seconds = max(self.longest_seconds, now - last)
            last, number = now, number + 1
            time.sleep(0.005)

    def _write(self, node: Node, name: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        fd = os.open(f"mount/{name}", flags, 0o644, dir_fd=self._places[node.name])
        try:
            os.write(fd, name.encode())
        finally:
            os.close(fd)

    def remove(self, node: Node) -> None:
        """Take all of it away again."""
        for name in self.done:
            (node.mountpoint / name).unlink()

    def check(self, node: Node) -> None:
        """All that was acknowledged is at *node*."""
        for name in self.done:
            assert (node.mountpoint / name).read_text() == name


@contextmanager
def pair(
    base: Path, *mirrors: None, config: str = CONFIG, old: str = "", new: str = ""
) -> Iterator[tuple[Node, ...]]:
    """A primary and its mirror, and further *mirrors*, level, whose root everybody may write to;
    with the fault *old* of the first, *new* of the second."""
    with nodes(base, None, *mirrors, config=config) as found:
        found[0].backing.chmod(0o777)
        for node, fault in zip(found, (old, new, *("" for _ in mirrors)), strict=True):
            node.start(fault=fault, wait=False)
        for node in found:
            node.await_live()
        for mirror in found[1:]:
            found[0].await_peer(mirror, "streaming")
        await_level(*found)
        yield found


def check_one_serves(one: Node, other: Node) -> tuple[Node, Node]:
    """Returns who serves, and who follows, once both are there."""
    wait_for(
        lambda: {one.ask()["role"], other.ask()["role"]} == {"primary", "mirror"},
        lambda: (one.words(), other.words()),
    )
    primary, mirror = (one, other) if one.ask()["role"] == "primary" else (other, one)
    wait_for(lambda: serves(primary), primary.words)
    with pytest.raises(OSError, match="Read-only"):
        (mirror.mountpoint / "refused").mkdir()
    return primary, mirror


def test_the_service_moves_under_a_writer(tmp_path: Path) -> None:
    """It is refused nothing at the old primary before that is a mirror; there and back again."""
    with pair(tmp_path) as (primary, mirror):
        (primary.mountpoint / "kept").mkdir()
        number = os.stat(primary.mountpoint / "kept").st_ino
        for old, new, reign in ((primary, mirror, "2/"), (mirror, primary, "3/")):
            with Writer(old, new) as writer:
                time.sleep(0.2)
                told = hand_over(old, new)
                wait_for(lambda: 1 in writer.done.values(), lambda: writer.errors)
            assert told["reign"].startswith(reign)
            assert told["reign"] == new.ask()["replication"]["reign"]
            assert {number for _, number in writer.errors} <= REFUSALS, writer.errors
            new.await_peer(old, "streaming")
            writer.check(new)
            check_equal(new, old)
            assert os.stat(new.mountpoint / "kept").st_ino == number
            writer.remove(new)
        assert load_state(primary.state).role is Role.PRIMARY
        assert load_state(primary.state).offered is None
        primary.run("restart", str(primary.state))
        for node in (primary, mirror):
            node.stop()
            assert not node.is_mounted(), "nothing is left beneath it"


STEPS = [
    ("old", "handoff.noted"),
    ("new", "handoff.committed"),
    ("old", "handoff.offered"),
    ("new", "handoff.commit"),
    ("old", "handoff.agreed"),
    ("old", "handoff.held"),
    ("old", "handoff.drained"),
    ("old", "handoff.taken"),
    ("old", "role.closed"),
    ("old", "role.changed"),
    ("new", "handoff.prepared"),
    ("new", "handoff.answered"),
    ("new", "role.closed"),
]
KILLS = int(os.environ.get("FUSEJOURNAL_TEST_KILLS", "4"))
"""So many of the steps are tried, the most telling first."""


@pytest.mark.parametrize(("side", "step"), STEPS[:KILLS])
def test_a_side_that_is_killed_leaves_one_primary(tmp_path: Path, side: str, step: str) -> None:
    """Killed at any step, and started again, the two agree who serves; nothing that was answered
    is lost, and the service can move again."""
    with pair(tmp_path, **{side: f"{step}:1:kill"}) as (primary, mirror):
        killed = primary if side == "old" else mirror
        with Writer(primary, mirror) as writer:
            time.sleep(0.1)
            command = threading.Thread(
                target=lambda: primary.run(
                    "handoff", str(primary.state), mirror.name, "--timeout", "3", check=False
                )
            )
            command.start()
            wait_for(lambda: not killed.is_alive(), killed.words)
            if step in ("handoff.commit", "handoff.committed"):
                degraded = lambda: " ".join(primary.ask()["degraded"])  # noqa: E731
                told = f"was offered to {mirror.name}, which does not say"
                wait_for(lambda: told in degraded(), degraded)
                assert re.search(r'mount it again with overrule = "2/\w{16}"', degraded())
            killed.detach()
            killed.start()
            new, old = check_one_serves(primary, mirror)
            at = [primary, mirror].index(new)
            count = len(writer.done)
            wait_for(lambda: len(writer.done) > count + 3, lambda: writer.errors)
            assert list(writer.done.values())[-1] == at
            command.join()
        wait_for(lambda: new.peer(old)["state"] == "streaming", new.ask)
        writer.check(new)
        check_equal(new, old)
        hand_over(new, old)
        assert serves(old)


def refused(node: Node, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of a handoff of *node* that is refused."""
    done = node.run("handoff", str(node.state), *arguments, check=False)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def stage(node: Node) -> str:
    """Returns the stage of the handoff of *node*."""
    return str(ask(node.state, "handoff-progress")["stage"])


def test_what_cannot_take_over_is_refused(tmp_path: Path) -> None:
    """In a line with the next step, and all goes on here."""
    with pair(tmp_path) as (primary, mirror):
        code, line = refused(primary, "nobody")
        assert code == 28
        code, line = refused(mirror, "primary")
        assert (code, "hand over from its primary" in line) == (2, True)
        primary.pause(mirror)
        code, line = refused(primary, mirror.name)
        assert (code, "fusejournal peer resume" in line) == (37, True)
        primary.resume(mirror)
        primary.await_peer(mirror, "streaming")
        mirror.host.cut()
        code, line = refused(primary, mirror.name, "--timeout", "0.5")
        assert (code, "not handed over" in line) == (37, True)
        (primary.mountpoint / "after").mkdir()
        mirror.host.mend()
        mirror.kill()
        wait_for(lambda: primary.peer(mirror)["state"] == "connecting", primary.ask)
        code, line = refused(primary, mirror.name)
        assert (code, "is away" in line) == (37, True)
        assert serves(primary)
        assert load_state(primary.state).offered is None
        mirror.detach()
        mirror.start()
        primary.resume(mirror)
        primary.await_peer(mirror, "streaming")
        hand_over(primary, mirror)


def test_changes_wait_and_go_on_when_it_is_undone(tmp_path: Path) -> None:
    """By the timeout, and by a Ctrl-C: no caller is refused meanwhile."""
    with pair(tmp_path, new="handoff.commit:1:EIO+") as (primary, mirror):
        with Writer(primary) as writer:
            time.sleep(0.1)
            code, line = refused(primary, mirror.name)
            assert (code, "planned at handoff.commit" in line) == (37, True)
            count = len(writer.done)
            wait_for(lambda: len(writer.done) > count + 3, lambda: writer.errors)
            primary.await_peer(mirror, "streaming")
            # Stopped, its kernel takes what is sent, and nothing of it is applied.
            os.kill(mirror.pid, signal.SIGSTOP)
            try:
                code, line = refused(primary, mirror.name, "--timeout", "1")
                assert (code, "after 1 s" in line) == (37, True)
                command = Forked(
                    ["handoff", str(primary.state), mirror.name],
                    primary.environment,
                    out=tmp_path / "out",
                    err=tmp_path / "err",
                )
                wait_for(
                    lambda: ask(primary.state, "handoff-progress")["stage"] == "preparing", str
                )
                time.sleep(0.3)
                command.send_signal(signal.SIGINT)
                assert command.wait(20) == 130
            finally:
                os.kill(mirror.pid, signal.SIGCONT)
            count = len(writer.done)
            wait_for(lambda: len(writer.done) > count + 3, lambda: writer.errors)
        assert writer.errors == []
        primary.await_peer(mirror, "streaming")
        check_equal(primary, mirror)


def test_a_hook_that_fails_stops_it_on_either_side(tmp_path: Path, hooks: HookPrograms) -> None:
    """And the hooks that come after take back what those before have done."""
    calls = tmp_path / "calls"
    before, after = (
        hooks.program(name, f'echo "{name} $FUSEJOURNAL_ROLE $FUSEJOURNAL_PEER" >> {calls}', last)
        for name, last in (
            ("before", f"! test -e {tmp_path}/fail-$FUSEJOURNAL_ROLE"),
            ("after", "true"),
        )
    )
    with pair(tmp_path, config=with_hooks(before=before, after=after)) as (primary, mirror):
        for role, code in (("primary", 37), ("mirror", 36)):
            calls.write_text("")
            (tmp_path / f"fail-{role}").touch()
            found, line = refused(primary, mirror.name)
            assert (found, "ended with status 1" in line) == (code, True)
            (tmp_path / f"fail-{role}").unlink()
            said = calls.read_text().splitlines()
            assert said[0] == "before primary primary"
            wait_for(lambda: "after mirror " in calls.read_text().splitlines(), calls.read_text)
        assert "before mirror mirror1" in said
        assert "after primary " in said
        assert serves(primary)
        hand_over(primary, mirror)
        wait_for(lambda: calls.read_text().splitlines()[-1] == "after mirror ", calls.read_text)


def test_the_others_follow(tmp_path: Path) -> None:
    """A further mirror, and one behind the target, without a word to them; two moves in a row."""
    with nodes(tmp_path, None, None, None) as (primary, target, beside, behind):
        target.ships_to(behind)
        book = PeerBook.load(primary.state)
        book.remove(behind.name)
        book.save()
        book = PeerBook.load(behind.state)
        book.remove(primary.name)
        book.save()
        for node in (primary, target, beside, behind):
            node.start(wait=False)
        for node in (primary, target, beside, behind):
            node.await_live()
        primary.await_peer(target, "streaming")
        primary.await_peer(beside, "streaming")
        (primary.mountpoint / "before").mkdir()
        await_level(primary, target, beside, behind)
        assert refused(primary, behind.name)[0] == 28
        hand_over(primary, target)
        (target.mountpoint / "after").write_text("of the new reign")
        check_equal(target, primary, beside, behind)
        hand_over(target, primary)
        (primary.mountpoint / "again").mkdir()
        check_equal(primary, target, beside, behind)


def test_a_mirror_that_both_ship_to_is_fed_by_the_new_primary(tmp_path: Path) -> None:
    """The new one waits for it; the old one, a mirror that would ship on to it, stops by itself."""
    with nodes(tmp_path, None, None, config=f"{CONFIG}mirrors = 2\n") as found:
        primary, target, third = found
        target.stands_by_for(third)
        for node in found:
            node.start(wait=False)
        for node in found:
            node.await_live()
        for mirror in (target, third):
            primary.await_peer(mirror, "streaming")
        (primary.mountpoint / "before").mkdir()
        await_level(primary, target, third)
        for old, new in ((primary, target), (target, primary)):
            hand_over(old, new)
            for mirror in (old, third):
                new.await_peer(mirror, "streaming")
            wait_for(partial(_ships_to_none, old), old.ask)
            assert third.mirroring()["primary"] == node_name(new.name)
            with open(new.mountpoint / f"by {new.name}", "wb") as file:
                os.fsync(file.fileno())
            assert new.ask()["degraded"] == []
            check_equal(new, old, third)


def _ships_to_none(node: Node) -> bool:
    return not node.ask()["replication"]["peers"]
