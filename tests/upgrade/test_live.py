"""A pair is upgraded from the release before, one node after the other, in either order."""

import os
import signal
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from fusejournal.disk.syscalls import AT_FDCWD
from fusejournal.journal.handle_key import NO_HANDLE_KEY
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import RENAME_WHITEOUT
from fusejournal.replay.digest import digest_tree
from fusejournal.wire.frames import PROTOCOL_VERSION
from tests.support.layer import Layer
from tests.support.mirrors import Node, await_level, check_equal, nodes
from tests.upgrade.releases import CONFIG, NoHistoryError, program_of, run_release, unpack, work

pytestmark = pytest.mark.mount

_TOP = Path(__file__).parent.parent.parent
_RELEASE = "0.1.0"
_OLDER = (
    "is of an older version, and reads entries up to kind 19, of 22: upgrade it before one comes"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's."""
    try:
        return unpack(_RELEASE, tmp_path_factory.mktemp("release") / "program")
    except NoHistoryError as error:
        pytest.skip(str(error))


def upgrade(node: Node, how: str) -> None:
    """End the release's program on *node* and start today's."""
    if how == "stop":
        node.stop()
    else:
        node.kill()
        assert node.wait() == -signal.SIGKILL
        node.detach()
    run_release(node, None)
    node.start()


@pytest.mark.parametrize(("first", "how"), [("mirror", "kill"), ("primary", "stop")])
def test_a_pair_is_upgraded(tmp_path: Path, program: Path, first: str, how: str) -> None:
    with nodes(tmp_path, None, config=CONFIG) as (primary, mirror):
        for node in (primary, mirror):
            run_release(node, program)
            node.start()
        work(primary.mountpoint)
        check_equal(primary, mirror)
        assert program_of(primary) == program_of(mirror) == program
        order = [primary, mirror] if first == "primary" else [mirror, primary]
        for number, node in enumerate(order):
            (primary.mountpoint / f"before {number}").write_text("on its way")
            upgrade(node, how)
            (primary.mountpoint / f"after {number}").write_text("by one or the other")
            (primary.mountpoint / "d" / "file").write_text(f"changed {number} times")
            if program_of(primary) != program:
                primary.run("mark", str(primary.state), "here")
                primary.run("mark", str(primary.state), "here", "--remove")
            primary.resume(mirror)
            check_equal(primary, mirror)
            if program_of(primary) != program:
                told = primary.peer(mirror)
                is_old = program_of(mirror) == program
                assert told["protocol_version"] == (1 if is_old else PROTOCOL_VERSION)
                assert told["notes"] == ([_OLDER] if is_old else [])
                assert told["limits"] == (None if is_old else primary.ask()["limits"])
        assert program not in (program_of(primary), program_of(mirror))
        for node in (primary, mirror):
            node.stop()


def test_the_release_refuses_what_this_version_has_mounted(tmp_path: Path, program: Path) -> None:
    """It would find no page of watermarks, and forget which reign it must not fall behind."""
    with nodes(tmp_path, None, config=CONFIG) as (primary, mirror):
        for node in (primary, mirror):
            run_release(node, program)
            node.start()
        work(primary.mountpoint)
        check_equal(primary, mirror)
        for node in (primary, mirror):
            upgrade(node, "stop")
            node.stop()
            kept = {path.name for path in node.state.iterdir()}
            assert "watermarks" in kept
            assert "marks" not in kept
            run_release(node, program)
            refused = node.run(*node.mount_arguments(), check=False)
            assert refused.returncode == 1
            assert "volume.json: written by another version of fusejournal" in refused.stderr
            # (It may begin a log, to say so.)
            assert {path.name for path in node.state.iterdir()} - kept <= {"log"}
            run_release(node, None)
        for node in (mirror, primary):
            node.start()
        check_equal(primary, mirror)
        for node in (primary, mirror):
            node.stop()


def test_a_mirror_that_has_heard_from_nobody_is_upgraded(tmp_path: Path, program: Path) -> None:
    with nodes(tmp_path, None, config=CONFIG) as (primary, mirror):
        run_release(mirror, program)
        mirror.start()
        upgrade(mirror, "stop")
        primary.start()
        work(primary.mountpoint)
        check_equal(primary, mirror)
        for node in (primary, mirror):
            node.stop()


def test_a_mirror_of_the_release_gets_a_new_volumes_key(tmp_path: Path, program: Path) -> None:
    """The release knows of no key: what it writes of a segment's header is without it."""
    with nodes(tmp_path, None, config=CONFIG) as (primary, mirror):
        run_release(mirror, program)
        for node in (primary, mirror):
            node.start()
        work(primary.mountpoint)
        await_level(primary, mirror)
        upgrade(mirror, "stop")
        primary.resume(mirror)
        for number in range(300):  # on to the next segment
            (primary.mountpoint / f"more {number}").touch()
        await_level(primary, mirror)
        assert digest_tree(primary.mountpoint).digest == digest_tree(mirror.mountpoint).digest
        keys = [JournalReader(node.state / "journal").handle_key() for node in (primary, mirror)]
        assert keys[0] == keys[1] != NO_HANDLE_KEY
        for node in (primary, mirror):
            node.stop()


def test_an_older_mirror_stops_before_what_it_cannot_read(tmp_path: Path, program: Path) -> None:
    """It is no damage there, and goes on once it is upgraded."""
    with nodes(tmp_path, None, config=CONFIG) as (primary, mirror):
        for node in (primary, mirror):
            run_release(node, program)
            node.start()
        (primary.mountpoint / "file").write_text("known to both")
        check_equal(primary, mirror)
        upgrade(primary, "stop")
        names = [os.fsencode(primary.mountpoint / name) for name in ("file", "moved")]
        syscalls.rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_WHITEOUT)
        told = primary.await_peer(mirror, "refused")
        assert "made by a newer version of fusejournal" in told["last_error"]
        assert told["advice"] == "upgrade the node that it names"
        assert told["notes"] == [_OLDER]
        assert (mirror.mountpoint / "file").read_text() == "known to both"
        upgrade(mirror, "stop")
        primary.resume(mirror)
        check_equal(primary, mirror)
        assert (mirror.mountpoint / "moved").read_text() == "known to both"
        for node in (primary, mirror):
            node.stop()


@pytest.mark.parametrize(
    ("exported", "how"), [(True, "restart"), (True, "kill"), (False, "restart")]
)
def test_a_live_layer_is_upgraded_beneath_its_users(
    tmp_path: Path, exported: bool, how: str
) -> None:
    """The new program comes in the old one's place while that runs, and files stay open."""
    place = tmp_path / "installed"
    try:
        unpack(_RELEASE, place)
    except NoHistoryError as error:
        pytest.skip(str(error))
    with Layer(tmp_path / "volume") as layer:
        if exported:
            layer.export_to_nobody()
        layer.environment["PYTHONPATH"] = str(place)
        layer.prefix = ("env",)  # a process that has imported nothing yet
        layer.start()
        before = layer.ask()
        assert before["held"] == exported
        assert "limits" not in before  # it is the release
        work(layer.mountpoint)
        path, unnamed = layer.mountpoint / "kept", layer.mountpoint / "unnamed"
        with open(path, "wb", buffering=0) as kept, open(unnamed, "w+b", buffering=0) as gone:
            kept.write(b"by the release, ")
            gone.write(b"without a name, ")
            unnamed.unlink()
            (place / "fusejournal").rename(place / "of before")
            (place / "fusejournal").symlink_to(_TOP / "fusejournal")
            if how == "restart":
                layer.run("restart", str(layer.state))
            else:
                layer.kill()
                layer.start()
            kept.write(b"by this one")
            gone.write(b"too")
            assert os.pread(gone.fileno(), 99, 0) == b"without a name, too"
        assert path.read_bytes() == b"by the release, by this one"
        now = layer.ask()
        assert now["held"] == exported
        assert "limits" in now
        layer.stop()
        assert "dead mount" not in layer.words()
        layer.check_rebuilt(tmp_path / "rebuilt")
