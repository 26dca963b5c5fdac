"""The same work on every backing that is supported, and its journal replayed."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from fusejournal.disk.acls import XFS_OWN_XATTRS
from fusejournal.disk.syscalls import AT_FDCWD
from fusejournal.node.state_dir import load_state
from fusejournal.operations import RENAME_EXCHANGE, RENAME_WHITEOUT
from fusejournal.replay.digest import digest_tree
from tests.support.filesystems import KINDS, filesystem
from tests.support.layer import Layer
from tests.support.losses import begin_another_boot
from tests.support.trees import difference, fids, image, rebuild

pytestmark = pytest.mark.mount


def _work(root: Path) -> None:
    """Unpack, copy, edit, build, move, remove."""
    for name in ("one", "two"):
        source = root / name / "src"
        source.mkdir(parents=True)
        for number in range(40):
            (source / f"f{number}.c").write_text(f"int f{number}(void) {{ return {number}; }}\n")
        (root / name / "Makefile").write_text(
            "all: lib.a\n%.o: %.c\n\tcc -c $< -o $@\n"
            "lib.a: $(patsubst %.c,%.o,$(wildcard src/*.c))\n\tar rcD $@ $^\n"
        )
        subprocess.run(["make", "-s", "-C", root / name], check=True)
    subprocess.run(["cp", "-a", root / "one", root / "copy"], check=True)
    subprocess.run(["rsync", "-aHAX", f"{root}/two/", f"{root}/synced"], check=True)
    subprocess.run(
        "sed -i s/int/long/ copy/src/*.c && chmod -R g+w copy", cwd=root, shell=True, check=True
    )
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["gc", "-q"]):
        subprocess.run([*git, *command], cwd=root / "synced", check=True)
    table = "create table t(a, b); create index i on t(b);"
    rows = "insert into t select value, hex(randomblob(30)) from generate_series(1, 2000);"
    subprocess.run(
        ["sqlite3", root / "db", table + rows + "delete from t where a % 3 = 0; vacuum;"],
        check=True,
    )
    os.rename(root / "one", root / "synced" / "moved")
    exchanged = [os.fsencode(root / path) for path in ("two/src", "copy/src")]
    syscalls.rename(AT_FDCWD, exchanged[0], AT_FDCWD, exchanged[1], RENAME_EXCHANGE)
    for path in ("two/replacing/below", "copy/replaced", "copy/src/alone"):
        (root / path).mkdir(parents=True)
    for old, new in (("two/replacing", "copy/replaced"), ("copy/src/alone", "two/alone")):
        paths = os.fsencode(root / old), os.fsencode(root / new)
        syscalls.rename(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_WHITEOUT)
    os.link(root / "db", root / "two" / "hard")
    os.symlink("../db", root / "two" / "soft")
    with open(root / "sparse", "wb") as file:
        file.seek(100 << 20)
        file.write(b"end")
    subprocess.run(["setfacl", "-R", "-m", "u:1000:rwX", root / "two"], check=True)
    os.setxattr(root / "db", "user.key", b"value")
    os.utime(root / "two", ns=(5, 1_234_567_890_123_456_789))
    subprocess.run(["rm", "-rf", root / "copy" / "src"], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_backing(tmp_path: Path, kind: str) -> None:
    with (
        filesystem(kind, tmp_path, "disk", 512) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        _work(disk / "backing")
        layer.start()
        (layer.mountpoint / "again").mkdir()
        _work(layer.mountpoint / "again")
        checks = "pragma integrity_check; select count(*) from t"
        found = subprocess.run(
            ["sqlite3", layer.mountpoint / "again" / "db", checks],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert found.stdout.split() == ["ok", "1334"]
        subprocess.run(
            ["git", "fsck", "--full"], cwd=layer.mountpoint / "again" / "synced", check=True
        )
        known, before = fids(layer.mountpoint), image(layer.mountpoint)
        layer.kill()
        layer.start()
        assert fids(layer.mountpoint) == known
        assert not difference(image(layer.mountpoint), before)
        layer.stop()
        assert "ERROR" not in layer.words()
        assert (layer.backing / "again" / "sparse").stat().st_blocks * 512 < 1 << 20
        target = disk / "rebuilt"
        layer.check_rebuilt(target)
        assert (target / "sparse").stat().st_blocks * 512 < 1 << 20


def test_acls_as_xfs_shows_them_once_more(tmp_path: Path) -> None:
    """In a form of its own, beside the common one, to root alone: they are no attributes. So trees
    on other file systems have the same digest, and putting a tree right leaves the ACLs there."""
    with (
        filesystem("xfs", tmp_path, "disk", 512) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        for name in ("imported", "made"):
            path = layer.mountpoint / name
            if name == "imported":
                path = layer.backing / name
            path.write_bytes(b"x")
            subprocess.run(["setfacl", "-m", "u:1000:rwx", path], check=True)
            if name == "imported":
                assert XFS_OWN_XATTRS & {os.fsencode(one) for one in os.listxattr(path)}
                layer.start()
        files = [layer.mountpoint / name for name in ("imported", "made")]
        assert [os.listxattr(path) for path in files] == [["system.posix_acl_access"]] * 2
        rights = [os.getxattr(path, "system.posix_acl_access") for path in files]
        head_seq = layer.head_seq()
        for path in files:
            path.write_bytes(b"other")
            os.setxattr(path, "trusted.SGI_ACL_FILE", b"as copied by rsync -X, or not at all")
            with pytest.raises(OSError, match="No data"):
                os.getxattr(path, "trusted.SGI_ACL_FILE")
        restore = "restore", str(layer.state), "--to-seq", str(head_seq), "--in-place", "--apply"
        layer.run(*restore)
        assert [path.read_bytes() for path in files] == [b"x"] * 2
        assert [os.getxattr(path, "system.posix_acl_access") for path in files] == rights
        os.chmod(files[0], 0o640)
        expected = image(layer.mountpoint)
        layer.kill()
        layer.detach()
        begin_another_boot(layer.state)
        layer.start()
        assert not (found := difference(image(layer.mountpoint), expected)), found
        layer.stop()
        (tmp_path / "rebuilt").mkdir()
        rebuild(layer.state, tmp_path / "rebuilt", load_state(layer.state).uuid)
        assert digest_tree(tmp_path / "rebuilt").digest == digest_tree(layer.backing).digest


def _try_attributes(path: Path) -> list[object]:
    """Tries large and many attributes. Returns what becomes of them."""
    path.write_bytes(b"x")
    found: list[object] = []
    for size in (1, 1000, 4000, 16_000, 65_536, 65_537):
        try:
            os.setxattr(path, "user.large", bytes(size))
            found.append(len(os.getxattr(path, "user.large")))
        except OSError as error:
            found.append(error.errno)
    with suppress(OSError):
        os.removexattr(path, "user.large")
    with suppress(OSError):
        for number in range(1000):
            os.setxattr(path, f"user.attribute{number:04}", b"value")
    # The layer's own mark takes the place of a few where all share a block.
    return [*found, len(os.listxattr(path)) // 8]


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_have_the_backing_s_limits(tmp_path: Path, kind: str) -> None:
    with (
        filesystem(kind, tmp_path, "disk", 512, *_OPTIONS.get(kind, ())) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        assert _try_attributes(layer.mountpoint / "file") == _try_attributes(disk / "plain")
        layer.stop()


_OPTIONS = {"ext4": ("-b", "4096", "-I", "256")}


@pytest.mark.parametrize("kind", ["xfs", "tmpfs"])
def test_more_attributes_than_an_entry_can_hold(tmp_path: Path, kind: str) -> None:
    with (
        filesystem(kind, tmp_path, "disk", 512) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        for name, content in (("empty", b""), ("file", b"content")):
            (layer.backing / name).write_bytes(content)
            for number in range(300 if name == "file" else 150):
                os.setxattr(layer.backing / name, f"user.{number}", os.urandom(65_536))
        before = image(layer.backing)
        layer.start()
        layer.stop()
        target = disk / "rebuilt"
        layer.check_rebuilt(target)
        assert image(target)[b"file"] == before[b"file"]


def test_a_time_beyond_the_entries_range(tmp_path: Path) -> None:
    """A backing that holds more than entries do is made what its entry says."""
    with (
        filesystem("tmpfs", tmp_path, "disk", 64) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        for number, name in enumerate(("file", "directory", "link")):
            path = layer.backing / name
            if name == "directory":
                path.mkdir()
            elif name == "link":
                path.symlink_to("file")
            else:
                path.write_bytes(b"content")
            os.system(f"touch -h -d '@{16_000_000_000 + number}' {path}")
            assert path.lstat().st_mtime > 15.9e9
        layer.start()
        layer.stop()
        layer.check_rebuilt(disk / "rebuilt")
