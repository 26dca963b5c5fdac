"""``fusejournal export`` and the end of an exported volume, with the real exportfs, mountd and
nfsd, and clients that hold nothing, files, or locks."""

import errno
import json
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fusejournal.admin import stop
from fusejournal.cli import umount as command
from fusejournal.config import VolumeConfig
from fusejournal.errors import VolumeBusyError
from fusejournal.layer.connection import release_kept
from fusejournal.nfs import exports, nfsd
from fusejournal.node.state_dir import load_state
from tests.support.guest import server
from tests.support.guest.holder import Holder
from tests.support.guest.server import NfsServer, drop_caches, sh, wait_until
from tests.support.layer import Layer

pytestmark = pytest.mark.guest(early=True)

CLIENT = Path("/nfs/client")
ETAB = Path("/var/lib/nfs/etab")


def fails(layer: Layer, code: int, *arguments: str) -> str:
    """Run a command that must end with *code* and one line on stderr; returns the line."""
    done = layer.run(*arguments, check=False)
    assert done.returncode == code, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def export(layer: Layer, *more: str) -> str:
    """Export it to this machine; what was printed."""
    return layer.run("export", "volume", "127.0.0.1", "--write", "--no-root-squash", *more).stdout


@pytest.fixture
def exported(nfs: NfsServer, volume: Layer) -> Iterator[Layer]:
    """A running volume, exported by the command, whose name outlives it."""
    volume.start()
    volume.mountpoint.chmod(0o777)
    export(volume)
    yield volume
    volume.kill()
    release_kept(volume.state / "connection")  # else nfsd would wait for it
    volume.detach()
    if nfsd.has_lost_files():
        nfs.stop()
        nfs.start()
    exports.own_file("volume").unlink(missing_ok=True)
    sh("exportfs", "-r")
    sh("exportfs", "-f")


def end(layer: Layer, *how: str) -> subprocess.CompletedProcess[str]:
    """Unmount it by the command."""
    done = layer.run("umount", "volume", *how)
    assert layer.wait() == 0
    assert not layer.is_mounted()
    return done


def outcome(path: Path) -> str:
    """Lists *path* as a client. Returns "ok", or the error's name."""
    try:
        os.listdir(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


REFUSED = ("ESTALE", "EACCES")
"""The errors of a server that does not export it; the second where nothing at all is exported to it
any more."""


def is_locked(layer: Layer) -> bool:
    """True if the server knows of a lock that a client has."""
    return any(one.kind == "lock" for one in nfsd.holders(layer.mountpoint))


def test_write_serves_and_remove_ends_it(
    nfs: NfsServer, version: str, volume: Layer, tmp_path: Path
) -> None:
    volume.start()
    (volume.mountpoint / "sub").mkdir()
    (volume.mountpoint / "sub" / "file").write_text("content")
    uuid = load_state(volume.state).uuid
    shown = volume.run("export", "volume", "127.0.0.1").stdout
    (one,) = exports.parse(shown.encode(), tmp_path)
    assert (one.path, one.client, one.fsid) == (volume.mountpoint, "127.0.0.1", uuid.hex)
    assert not exports.own_file("volume").exists()
    assert not ETAB.read_text()
    shown = export(volume)
    assert exports.own_file("volume").read_text() in shown
    assert f"mount -t nfs guest:{volume.mountpoint} /mnt" in shown
    assert f"fsid={uuid}," in ETAB.read_text()
    with nfs.client(version, volume.mountpoint, CLIENT) as client:
        (client / "made").write_text("by a client")
        assert (volume.mountpoint / "made").read_text() == "by a client"
        served = Path("/proc/net/rpc/nfsd.export/content").read_text()
        assert f"uuid={uuid.hex[:8]}:{uuid.hex[8:16]}:" in served
        with nfs.client(version, volume.mountpoint / "sub", Path("/nfs/sub")) as sub:
            assert (sub / "file").read_text() == "content"
        told = json.loads(
            volume.run("export", "volume", "127.0.0.1", "10.0.0.0/8", "--write", "--ro", "--json")
            .stdout
        )  # fmt: skip
        assert (told["written"], told["fsid"], told["warnings"]) == (True, str(uuid), [])
        assert len(ETAB.read_text().splitlines()) == 2
        with pytest.raises(OSError, match="Read-only"):
            (client / "more").write_text("x")
        volume.run("export", "volume", "--remove")
        assert not exports.own_file("volume").exists()
        assert not ETAB.read_text()
        assert outcome(client) in REFUSED
    end(volume, "--force")  # NFSv4 has no way to give back what it may not reach any more
    assert not volume.words()


def test_umount_beneath_an_idle_client(nfs: NfsServer, version: str, exported: Layer) -> None:
    with (
        nfs.client(version, exported.mountpoint, CLIENT, "actimeo=0") as client,
        Holder() as holder,
    ):
        (client / "dir").mkdir()
        (client / "dir" / "file").write_text("content")
        assert (client / "dir" / "file").read_text() == "content"
        inode = (client / "dir" / "file").stat().st_ino
        holder.do("open", "dir", client / "dir", os.O_RDONLY)
        end(exported)
        assert not ETAB.read_text()
        assert exports.own_file("volume").exists()
        assert holder.outcome("list", "dir") in REFUSED
        assert outcome(client) in REFUSED
        exported.start()
        wait_until("service", lambda: outcome(client) == "ok")
        drop_caches()
        assert holder.outcome("list", "dir") == ["file"]
        assert (client / "dir" / "file").read_text() == "content"
        assert (client / "dir" / "file").stat().st_ino == inode
        (client / "dir" / "more").write_text("after")
    end(exported)
    assert not exported.words()


@contextmanager
def holding(nfs: NfsServer, version: str, layer: Layer, *, lock: bool) -> Iterator[Holder]:
    """A client with ``d/file`` open, and locked."""
    with nfs.client(version, layer.mountpoint, CLIENT) as client, Holder() as holder:
        (client / "d").mkdir()
        holder.do("open", "file", client / "d" / "file", os.O_RDWR | os.O_CREAT)
        holder.do("write", "file", b"before", 0)
        if lock:
            holder.do("lock", "file")
        yield holder


def test_umount_names_a_client_that_holds_a_lock(
    nfs: NfsServer, version: str, exported: Layer
) -> None:
    before = ETAB.read_text()
    with holding(nfs, version, exported, lock=True) as holder:
        line = fails(exported, 4, "umount", "volume")
        assert "d/file (" in line
        assert "locked" in line
        assert ("NFSv4 client 127.0.0.1" if version != "3" else "an NFSv3 client") in line
        assert "--force" in line
        assert ETAB.read_text() == before
        assert is_locked(exported)
        assert exported.is_mounted()
        assert holder.do("write", "file", b"still here", 0) == 10
        assert (exported.mountpoint / "d" / "file").read_bytes() == b"still here"
        done = end(exported, "--force")
        assert "taken away" in done.stderr
        assert "d/file" in done.stderr
        assert nfsd.threads() == 4
        assert holder.outcome("write", "file", b"too late", 0) in (*REFUSED, "EIO")
        exported.start()
        wait_until("service", lambda: outcome(CLIENT) == "ok")
        assert (CLIENT / "d" / "file").read_bytes() == b"still here"
        holder.outcome("close", "file")
        holder.do("open", "again", CLIENT / "d" / "file", os.O_RDWR)
        wait_until("a lock", lambda: holder.outcome("lock", "again") is None)
    assert not exported.words()


def test_umount_once_the_client_has_closed_it(nfs: NfsServer, exported: Layer) -> None:
    with holding(nfs, "4.2", exported, lock=False) as holder:
        line = fails(exported, 4, "umount", "volume")
        assert "d/file (open" in line
        holder.do("close", "file")
        end(exported)


def test_umount_recalls_delegations(nfs: NfsServer, exported: Layer) -> None:
    (exported.mountpoint / "file").write_text("content")
    with nfs.client("4.2", exported.mountpoint, CLIENT) as client, Holder() as holder:
        holder.do("open", "file", client / "file", os.O_RDONLY)
        assert holder.do("read", "file") == b"content"
        holder.do("close", "file")
        wait_until(
            "only a delegation",
            lambda: [one.kind for one in nfsd.holders(exported.mountpoint)] == ["deleg"],
        )
        end(exported)


def test_umount_with_a_local_user_leaves_the_clients_alone(
    nfs: NfsServer, version: str, exported: Layer
) -> None:
    before = ETAB.read_text()
    with nfs.client(version, exported.mountpoint, CLIENT) as client:
        (client / "file").write_text("content")
        with open(exported.mountpoint / "file"):
            line = fails(exported, 4, "umount", "volume")
            assert str(os.getpid()) in line
            assert str(os.getpid()) in fails(exported, 4, "umount", "volume", "--force")
            assert ETAB.read_text() == before
            assert outcome(client) == "ok"
            end(exported, "--lazy")
    assert not ETAB.read_text()


def test_what_cannot_be_unmounted_is_exported_as_before(
    nfs: NfsServer, exported: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is mapped keeps the mount, but no process has it open."""
    before = ETAB.read_text()
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", exported.environment["FUSEJOURNAL_STATE_ROOT"])
    monkeypatch.setattr(stop, "_LET_GO_SECONDS", 1.0)
    inside = exported.mountpoint / "inside"
    inside.mkdir()
    sh("mount", "-t", "tmpfs", "tmpfs", inside)
    assert f"{inside} is mounted inside" in fails(exported, 4, "umount", "volume")
    sh("umount", inside)
    with nfs.client("3", exported.mountpoint, CLIENT) as client:
        (client / "file").write_text("content")
        with open(exported.mountpoint / "file", "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        # mmap keeps a descriptor of its own: it is to be of another file.
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{fd}") == str(exported.mountpoint / "file"):
                    with open(os.devnull, "rb") as nothing:
                        os.dup2(nothing.fileno(), int(fd))
        assert command.umount.callback is not None
        for force in (False, True):
            with pytest.raises(VolumeBusyError, match="in use"):
                command.umount.callback(str(exported.mountpoint), False, force)
            assert ETAB.read_text() == before
            assert nfsd.threads() == 4
            assert (client / "file").read_text() == "content"
        (client / "more").write_text("works")
        mapped.close()
    end(exported)


def test_umount_of_a_layer_that_died(nfs: NfsServer, version: str, exported: Layer) -> None:
    with nfs.client(version, exported.mountpoint, CLIENT) as client:
        (client / "file").write_text("content")  # nfsd has it open for some seconds more
        exported.kill()
        begun = time.monotonic()
        assert "had died" in exported.run("umount", "volume").stderr
        assert time.monotonic() - begun < VolumeConfig().hold_seconds / 2
        assert not exported.is_mounted()
        assert not ETAB.read_text()
        assert outcome(client) in REFUSED
        exported.start()
        wait_until("service", lambda: outcome(client) == "ok")
        assert (client / "file").read_text() == "content"


def test_nothing_is_served_without_the_layer(nfs: NfsServer, version: str, exported: Layer) -> None:
    end(exported)
    (exported.mountpoint / "below").touch()
    done = exported.run("export", "volume", "127.0.0.1", "--write")
    assert "not mounted" in done.stderr
    assert str(exported.mountpoint) in ETAB.read_text()
    CLIENT.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["timeout", "5", "mount", "-t", "nfs", "-o", f"vers={version},retry=0",
         f"127.0.0.1:{exported.mountpoint}", CLIENT],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode
    assert not os.path.ismount(CLIENT)
    (exported.mountpoint / "below").unlink()
    exported.start()
    with nfs.client(version, exported.mountpoint, CLIENT, "retry=1") as client:
        assert outcome(client) == "ok"


def test_a_new_mount_beneath_open_files(nfs: NfsServer, exported: Layer) -> None:
    """The mount died with its layer; nfsd has clients' files open on it."""
    with holding(nfs, "4.2", exported, lock=True) as holder:
        exported.reconfigure("[volume]\nhold_seconds = 0\n")
        end(exported, "--lazy")
        assert nfsd.has_lost_files()
        exported.start()
        wait_until("a new nfsd", lambda: "restarted nfsd" in exported.words())
        assert not nfsd.has_lost_files()
        assert nfsd.threads() == 4
        assert holder.do("read", "file") == b"before"
        assert holder.do("write", "file", b"afterwards", 0) == 10
        assert (exported.mountpoint / "d" / "file").read_bytes() == b"afterwards"


def test_odd_names(nfs: NfsServer, version: str, disk: Path, volume: Layer) -> None:
    mountpoint = volume.base / "a b#'c"
    mountpoint.mkdir()
    places = (str(volume.backing), str(mountpoint))
    volume.run("mount", *places, "--name", "odd one", "--open-backing")
    try:
        volume.run("export", "odd one", "127.0.0.1", "--write")
        with nfs.client(version, mountpoint, CLIENT) as client:
            assert outcome(client) == "ok"
        volume.run("export", "odd one", "--remove")
        assert not ETAB.read_text()
    finally:
        volume.run("umount", "odd one")


def test_exports_made_by_hand_stay(nfs: NfsServer, disk: Path, exported: Layer) -> None:
    other = disk / "by hand"
    other.mkdir()
    sh("exportfs", "-o", "rw,no_subtree_check,sec=sys", f"[2001:db8::]/32:{other}")
    line = next(line for line in ETAB.read_text().splitlines() if "2001:db8::/32" in line)
    try:
        export(exported, "--ro")
        assert line in ETAB.read_text().splitlines()
        end(exported)
        exported.start()
        assert line in ETAB.read_text().splitlines()
        exported.run("export", "volume", "--remove")
        assert ETAB.read_text().splitlines() == [line]
    finally:
        sh("exportfs", "-u", f"[2001:db8::]/32:{other}")
        other.rmdir()


def test_a_parent_that_crosses_mounts_is_an_export_too(
    nfs: NfsServer, version: str, volume: Layer
) -> None:
    volume.start()
    volume.mountpoint.chmod(0o777)
    assert volume.ask()["durability"] == "async"
    with server.exported(volume.base, "no_root_squash", "crossmnt"):
        wait_until("the export", lambda: volume.ask()["held"])
        assert (volume.ask()["exported"], volume.ask()["durability"]) == (True, "nfs")
        # This nfsd passes no mount on that has no fsid of its own.
        export(volume, "--async")
        assert volume.ask()["durability"] == "nfs"
        with nfs.client(version, volume.base, CLIENT) as client:
            (client / "mount" / "file").write_text("content")
            assert volume.entries()[-1]["path"] == "file"
            volume.kill()
            volume.start()
            assert (client / "mount" / "file").read_text() == "content"
        end(volume)
        assert f"{volume.base}\t" in ETAB.read_text()
    exports.own_file("volume").unlink()
    sh("exportfs", "-r")


def test_bad_input(nfs: NfsServer, exported: Layer, tmp_path: Path) -> None:
    sub = exported.mountpoint / "sub"
    sub.mkdir()
    line = fails(exported, 23, "export", str(sub), "127.0.0.1")
    assert "inside volume volume" in line
    assert f"SERVER:{sub}" in line
    fails(exported, 2, "export", "volume")
    fails(exported, 2, "export", "volume", "a b")
    fails(exported, 2, "export", "volume", "h(rw)", "--write")
    fails(exported, 2, "export", "volume", "h", "--option", "fsid=3")
    fails(exported, 2, "export", "volume", "h", "--remove")
    fails(exported, 3, "export", "nobody", "h")
    fails(exported, 2, "umount", "volume", "--lazy", "--force")
    uuid = load_state(exported.state).uuid
    before = (exports.own_file("volume").read_text(), ETAB.read_text())
    other = Path("/etc/exports.d/other.exports")
    for text, words in (
        (f"/srv h(fsid={uuid})", "with the fsid of volume"),
        (f"{exported.mountpoint} h(rw)", "without an fsid"),
        (f"{exported.mountpoint} h(rw,fsid=7)", "otherwise"),
        (f"{sub} h(rw,fsid=7)", "inside volume"),
    ):
        other.write_text(f"# by hand\n{text}\n")
        line = fails(exported, 24, "export", "volume", "h", "--write")
        assert f"{other} line 2" in line
        assert words in line
    other.unlink()
    assert "Failed to resolve" in fails(exported, 23, "export", "volume", "no.such.host", "--write")
    assert "nonsense" in fails(
        exported, 23, "export", "volume", "127.0.0.1", "--write", "--option", "nonsense"
    )
    assert (exports.own_file("volume").read_text(), ETAB.read_text()) == before


def test_without_a_server(nfs: NfsServer, exported: Layer, tmp_path: Path) -> None:
    nfs.stop()
    try:
        done = exported.run("export", "volume", "h")
        assert "systemctl start nfs-server" in done.stderr
        end(exported)
        exported.start()
    finally:
        nfs.start()
    exported.environment["FUSEJOURNAL_NFS_ROOT"] = str(tmp_path)
    done = exported.run("export", "volume", "h", "--write", check=False)
    assert done.returncode == 25
    assert "apt install nfs-kernel-server" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    written = tmp_path / "etc/exports.d/fusejournal-volume.exports"
    assert written.read_text() in done.stdout
    end(exported, "--lazy")
