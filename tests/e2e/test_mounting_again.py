"""Mounting a volume that was mounted before: what is remembered of it, and what counts now."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_mounting import fails
from tests.support.layer import Layer
from tests.support.patience import wait_until

pytestmark = pytest.mark.mount


def mount_options(layer: Layer) -> set[str]:
    """The options of the layer's mount, as the kernel tells them."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    (options,) = [words[3] for words in lines if words[1] == str(layer.mountpoint)]
    return set(options.split(","))


@pytest.mark.parametrize("known_by", ["name", "mountpoint", "state"])
def test_mounting_a_known_volume_again(layer: Layer, known_by: str) -> None:
    layer.start()
    (layer.mountpoint / "file").write_text("content")
    layer.stop()
    known = {"name": "volume", "mountpoint": str(layer.mountpoint), "state": str(layer.state)}
    layer.run("mount", known[known_by])
    assert layer.is_mounted()
    assert (layer.mountpoint / "file").read_text() == "content"
    status = layer.ask()
    assert (status["backing"], status["mountpoint"]) == (str(layer.backing), str(layer.mountpoint))
    line = fails(layer, 4, "mount", known[known_by])
    assert f"held by process {status['pid']}, mounted at {layer.mountpoint} already" in line
    assert "'fusejournal umount volume' first" in line
    assert "'fusejournal restart volume'" in line
    layer.run("umount", "volume")
    # With both places, too, as ever; and a volume may move, but not by a mount that is refused.
    elsewhere = layer.base / "elsewhere"
    fails(layer, 6, "mount", str(layer.backing), str(elsewhere), "--state", str(layer.state))
    other = layer.base / "other"
    other.mkdir()
    (other / "file").touch()
    fails(layer, 5, "mount", str(other), str(layer.mountpoint), "--state", str(layer.state))
    status = json.loads(layer.run("status", "volume", "--json").stdout)
    assert (status["backing"], status["mountpoint"]) == (str(layer.backing), str(layer.mountpoint))
    elsewhere.mkdir()
    layer.run("mount", str(layer.backing), str(elsewhere), "--state", str(layer.state))
    layer.run("umount", "volume")
    layer.run("mount", "volume")
    assert os.path.ismount(elsewhere)
    layer.run("umount", "volume")


def test_mounting_in_place_again(tmp_path: Path) -> None:
    with Layer(tmp_path, in_place=True) as layer:
        layer.start()
        (layer.mountpoint / "file").write_text("content")
        layer.kill()
        layer.run("mount", "volume")  # the dead mount that covers the backing goes first
        assert (layer.mountpoint / "file").read_text() == "content"
        layer.run("umount", "volume")


@pytest.mark.parametrize("in_place", [False, True])
def test_unmounting_from_within(tmp_path: Path, in_place: bool) -> None:
    program = str(Path(sys.executable).with_name("fusejournal"))

    def shell(script: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", script, "sh", program, str(layer.mountpoint)]
        return subprocess.run(
            command, env=layer.environment, capture_output=True, text=True, check=False
        )

    with Layer(tmp_path, in_place=in_place) as layer:
        layer.start()
        refused = shell('cd "$2"; "$1" umount .; exit $?')
        assert refused.returncode == 4
        assert refused.stderr.endswith("leave it with 'cd /', or use --lazy\n")
        assert "fusejournal)" not in refused.stderr
        with subprocess.Popen(["sleep", "60"], cwd=layer.mountpoint) as other:
            refused = shell('cd "$2"; "$1" umount .; exit $?')
            other.kill()
        assert f"{other.pid} (sleep)" in refused.stderr
        assert "stop that, or use --lazy" in refused.stderr
        assert "fusejournal)" not in refused.stderr
        assert shell('cd "$2"; exec "$1" umount .').returncode == 0


_MAPPED = (
    "import mmap, os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR); "
    "kept = mmap.mmap(fd, 4096, trackfd=False) if sys.version_info >= (3, 13) else "
    "mmap.mmap(fd, 4096); os.closerange(3, 99); print(flush=True); time.sleep(60)"
)


@pytest.mark.parametrize("in_place", [False, True])
def test_unmounting_what_is_mapped(tmp_path: Path, in_place: bool) -> None:
    """Exported, too, where users are looked for before anything is unexported."""
    with Layer(tmp_path, in_place=in_place) as layer:
        layer.export_to_nobody()
        layer.start()
        (file := layer.mountpoint / "file").write_bytes(bytes(4096))
        program = [sys.executable, "-c", _MAPPED, str(file)]
        with subprocess.Popen(program, stdout=subprocess.PIPE) as user:
            assert user.stdout is not None
            assert user.stdout.readline() == b"\n"
            line = fails(layer, 4, "umount", "volume")
            user.kill()
        assert f"in use by {user.pid} (python" in line
        assert "fusejournal)" not in line
        layer.run("umount", "volume")


def test_a_copy_of_the_mount_in_another_namespace(layer: Layer) -> None:
    """The layer serves it as before: that is said, at the unmount and at the next mount."""
    layer.start()
    script = 'mount --make-rprivate /; echo; exec sleep 60 < "$1"'
    shell = ["unshare", "-m", "sh", "-ec", script, "sh", "/dev/null"]
    with subprocess.Popen(shell, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
        held = (
            f"held by process {layer.ask()['pid']}, whose mount is gone from {layer.mountpoint}, "
        )
        for command in ("umount", "mount"):
            line = fails(layer, 4, command, "volume")
            # (Other namespaces may have been made just then.)
            assert f"{held}but not from the mount namespace of " in line
            assert f"{other.pid} (sleep)" in line
            assert "cut it off with 'fusejournal umount volume --lazy'" in line
            assert not layer.is_mounted()
        layer.run("umount", "volume", "--lazy")
        layer.run("mount", "volume")
        other.kill()
    layer.run("umount", "volume")
    assert layer.entries()[-1]["op"] == "clean"


def test_a_mount_of_nothing_known(layer: Layer) -> None:
    assert "no volume 'nobody'" in fails(layer, 3, "mount", "nobody")
    line = fails(layer, 3, "mount", "/nowhere")
    assert "no volume '/nowhere' was mounted before" in line
    assert line.count("no volume") == 1
    assert "give a name" not in line
    assert "a new one needs BACKING and MOUNTPOINT" in line
    layer.start()
    layer.stop()
    for option in ("--name", "--state"):
        line = fails(layer, 2, "mount", "volume", option, "other")
        assert "need BACKING and MOUNTPOINT, not 'volume' alone" in line
    for places in ([], ["a", "b", "c"]):
        assert layer.run("mount", *places, check=False).returncode == 2


def test_the_configuration_of_a_volume(layer: Layer) -> None:
    configurations = layer.base / "etc"
    configurations.mkdir()
    layer.environment["FUSEJOURNAL_CONFIG_ROOT"] = str(configurations)
    its = configurations / "volume.toml"
    its.write_text('[volume]\noptions = ["nosuid", "nodev"]\n')
    places = (str(layer.backing), str(layer.mountpoint), "--name", "volume")
    layer.run("mount", *places, "-o", "noexec,dev")
    flags = {"nosuid", "nodev", "noexec"}
    assert mount_options(layer) & flags == {"nosuid", "noexec"}
    layer.run("umount", "volume")
    layer.run("mount", "volume", "-o", "suid")
    assert mount_options(layer) & flags == {"nodev"}
    layer.run("umount", "volume")
    its.write_text('[volume]\noptions = ["synchronous"]\n')
    line = fails(layer, 2, "mount", "volume")
    assert f"{its}: volume.options" in line
    other = layer.base / "other.toml"
    other.write_text("")
    layer.run("mount", "volume", "--config", str(other))  # instead of it, not besides
    assert not mount_options(layer) & flags
    layer.run("umount", "volume")


def test_a_mount_in_the_background_keeps_nothing_of_the_caller(layer: Layer) -> None:
    """Relative places, a directory that goes away, and modules that lie in it."""
    here = layer.base / "here"
    (here / "fusejournal").mkdir(parents=True)
    (here / "fusejournal" / "__init__.py").write_text("raise SystemExit('the wrong module')")
    os.symlink(layer.base / "config.toml", here / "config.toml")
    places = ("../backing", "../mount", "--state", "../state", "--config", "config.toml")
    program = Path(sys.executable).with_name("fusejournal")
    subprocess.run(
        [program, "mount", *places, "--name", "volume"], env=layer.environment, cwd=here, check=True
    )
    pid = layer.ask()["pid"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    layer.run("umount", "volume")


def test_where_it_listens_is_remembered_if_the_command_line_says_it(layer: Layer) -> None:
    def listens_at(*arguments: str) -> str | None:
        layer.run(*arguments)
        try:
            replication = json.loads(layer.run("status", "volume", "--json").stdout)["replication"]
        finally:
            layer.run("umount", "volume")
        listen: str | None = replication["listen"]
        return listen

    of_file, of_options = "127.0.0.1:47710", "127.0.0.1:47711"
    again = ("mount", "volume")
    configured = (*again, "--config", str(layer.base / "config.toml"))
    layer.reconfigure(f'[replication]\nlisten = "{of_file}"\n')
    assert listens_at(*layer.mount_arguments()) == of_file
    layer.reconfigure("")
    assert listens_at(*layer.mount_arguments()) is None
    # An address that is not this machine's is not remembered, either.
    assert "192.0.2.7" in fails(layer, 38, *again, "--listen", "192.0.2.7:47710")
    assert listens_at(*again) is None
    assert listens_at(*again, "--listen", of_options) == of_options
    assert listens_at(*again) == of_options
    layer.reconfigure(f'[replication]\nlisten = "{of_file}"\n')
    assert listens_at(*configured) == of_file
    layer.reconfigure('[replication]\nlisten = "none"\n')
    assert listens_at(*configured) is None
    assert listens_at(*again) == of_options
    assert listens_at(*again, "--listen", "none") is None
    assert listens_at(*again) is None
