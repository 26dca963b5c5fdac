"""The same work on every backing that is supported, and its journal replayed."""

import os
import subprocess
from pathlib import Path

import pytest

from fusejournal.backing import syscalls
from fusejournal.backing.syscalls import AT_FDCWD
from fusejournal.operations import RENAME_EXCHANGE
from fusejournal.state import load_state
from tests.support.filesystems import KINDS, filesystem
from tests.support.layer import Layer
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
        target.mkdir()
        rebuild(layer.state, target, load_state(layer.state).uuid)
        assert not difference(image(target), image(layer.backing))
        assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
